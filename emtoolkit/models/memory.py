"""The peak memory of a training and of its evaluations, from the shapes of its tensors alone, without torch.

The tensors that autograd saves in a decoder layer were read from the modules of transformers and PEFT, following
Korthikanti et al. 2022 (arXiv:2205.05198, section 4), whose layer has no gated MLP, grouped heads, RMS norms or
adapters. `tests/models/test_memory.py` compares the result with the tensors that autograd saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

# bitsandbytes quantises a weight in blocks of 64, and their scales in blocks of 256.
_BLOCK_4BIT, _BLOCK_SCALES = 64, 256
# bitsandbytes keeps 8-bit states in blocks of 256; tensors below 4096 elements keep 32-bit states (`min_8bit_size`).
_BLOCK_8BIT, _LEAST_8BIT = 256, 4096
_FLOAT32 = 4
# The memory sizes of common GPUs. N GB counts as N x 10^9 bytes; a GPU has N x 2^30 less the driver's share, which
# leaves about 5 % for the CUDA context and for fragmentation.
GPUS_GB = (24, 40, 48, 80)


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of a decoder, and the widths of its tensors in elements per token."""

    parameters: int
    """Tied weights counted once."""
    linear: int
    """Weights of the linear layers except the output layer: the weights that 4-bit loading quantises."""
    output: int
    """Weights of the output layer, tied to the embedding or not."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    query: int
    key: int
    vocabulary: int
    norms: int = 2
    """The number of RMS norms over `hidden` in a layer."""
    head_norms: bool = False
    """Whether queries and keys are normalised."""
    norms_in_float32: bool = False
    """Whether a norm multiplies by its weight in float32, as in Gemma."""
    softcapped_attention: bool = False
    softcapped_logits: bool = False


@dataclass(frozen=True, slots=True)
class Adapted:
    """A module with an adapter: its layer, its block (such as `self_attn`), the width of its input, and the rank."""

    layer: int
    block: str
    name: str
    inputs: int
    rank: int


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained tensors, by their number of elements, and the modules with adapters.

    `embeddings` are the embedding matrices among `tensors`. Without `adapted` modules all weights are trained.
    """

    tensors: tuple[int, ...]
    embeddings: tuple[int, ...] = ()
    adapted: tuple[Adapted, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(self.tensors)


@dataclass(frozen=True, slots=True)
class Setting:
    """How the model is loaded and trained: `dtype_bytes` per weight of the base model, `autocast` for bf16 training.

    A batch has `batch` rows of `length` tokens, and a batch of an evaluation `eval_batch` rows, 0 without evaluations.
    """

    dtype_bytes: int
    batch: int
    length: int
    eval_batch: int = 0
    four_bit: bool = False
    autocast: bool = False
    attention: str = "sdpa"
    eight_bit_adam: bool = False
    checkpointing: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def compute_bytes(self) -> int:
        """Bytes of one element of a linear layer's output."""
        return 2 if self.autocast or self.four_bit else self.dtype_bytes

    @property
    def residual_bytes(self) -> int:
        """Bytes of one element of the residual stream; with 4-bit weights the embedding is float32."""
        return _FLOAT32 if self.four_bit else self.dtype_bytes

    @property
    def mlp_bytes(self) -> int:
        """Bytes of one element inside an MLP: a 4-bit layer keeps its input's dtype, float32 after a float32 norm."""
        return _FLOAT32 if self.four_bit else self.compute_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a training step and of an evaluation.

    `activations` are the tensors that the forward pass saves for the backward pass, `recompute` is the one layer that
    gradient checkpointing runs again, `logits` is the loss over the vocabulary, and `optimizer_step` is the temporary
    memory of the optimizer's step. `evaluation` is what an evaluation takes beside weights and optimizer.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    recompute: int
    logits: int
    optimizer_step: int
    evaluation: int = 0

    @property
    def peak(self) -> int:
        """The peak in bytes: the loss, a recomputed layer, the optimizer's update and evaluations follow one another.

        The Trainer frees the gradients before an evaluation.
        """
        held = self.weights + self.optimizer
        step = max(self.activations + max(self.logits, self.recompute), self.optimizer_step)
        return held + max(self.gradients + step, self.evaluation)

    def fits(self, gigabytes: int) -> bool:
        """Whether the peak fits on a GPU that is sold as one of `gigabytes` GB."""
        return self.peak <= gigabytes * 10**9


def estimate(shape: Shape, trained: Trained, setting: Setting) -> Memory:
    """The memory of a training step; an upper bound, since all gradients are counted at once."""
    trained_bytes = _FLOAT32 if trained.adapted else setting.dtype_bytes
    saved, recomputed = activations(shape, trained, setting)
    return Memory(
        weights=base_weights(shape, setting) + (trained.parameters * trained_bytes if trained.adapted else 0),
        gradients=trained.parameters * trained_bytes,
        optimizer=optimizer_states(trained, trained_bytes, eight_bit=setting.eight_bit_adam),
        activations=saved,
        recompute=recomputed,
        logits=logits(shape, setting),
        # torch.optim.adamw._multi_tensor_adamw, the default on a GPU, computes the roots of all second moments at once.
        optimizer_step=0 if setting.eight_bit_adam else trained.parameters * trained_bytes,
        evaluation=evaluation(shape, trained, setting) if setting.eval_batch else 0,
    )


def base_weights(shape: Shape, setting: Setting) -> int:
    """Bytes of the base model.

    In 4-bit a weight takes half a byte, a byte for the scale of each 64, and 4 for the scale of each 256 of those
    scales (Dettmers et al. 2023, arXiv:2305.14314, section 3, "double quantization": 0.127 bits a parameter).
    `peft.prepare_model_for_kbit_training` casts all other weights to float32.
    """
    if not setting.four_bit:
        return shape.parameters * setting.dtype_bytes
    scales = shape.linear / _BLOCK_4BIT
    quantised = shape.linear / 2 + scales + _FLOAT32 * scales / _BLOCK_SCALES
    return round(quantised) + _FLOAT32 * (shape.parameters - shape.linear)


def optimizer_states(trained: Trained, trained_bytes: int, *, eight_bit: bool) -> int:
    """Bytes of Adam's two moments (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    `torch.optim.AdamW` keeps them in the parameter's dtype. In 8-bit they are a byte each and a float32 scale for
    every 256 (Dettmers et al. 2022, arXiv:2110.02861, section 2), but float32 for small tensors and for embeddings
    (`Trainer.create_optimizer` registers those with bitsandbytes as 32-bit).
    """
    if not eight_bit:
        return 2 * trained.parameters * trained_bytes
    in_float32 = sum(trained.embeddings)
    eight = list(trained.tensors)
    for size in trained.embeddings:
        eight.remove(size)
    small = sum(size for size in eight if size < _LEAST_8BIT)
    large = [size for size in eight if size >= _LEAST_8BIT]
    return 2 * (_FLOAT32 * (in_float32 + small) + sum(size + _FLOAT32 * -(-size // _BLOCK_8BIT) for size in large))


def logits(shape: Shape, setting: Setting) -> int:
    """Bytes of the loss: three float32 copies of batch x length x vocabulary.

    The backward pass of `transformers.loss.loss_utils.ForCausalLMLoss` holds the log-probabilities, the gradient of
    `nll_loss` and the gradient of `log_softmax`. Soft-capped logits also save the tanh.
    """
    copies = 3 * _FLOAT32 + (setting.compute_bytes if shape.softcapped_logits else 0)
    return copies * shape.vocabulary * setting.tokens


def evaluation(shape: Shape, trained: Trained, setting: Setting) -> int:
    """Bytes that an evaluation takes beside weights and optimizer: its loss, or its largest layer.

    Without a backward pass the loss holds the logits, their float32 copy and the log-probabilities of a whole batch
    (`transformers.loss.loss_utils.ForCausalLMLoss`). Autocast keeps its copies of the trained weights.
    """
    batch = replace(setting, batch=setting.eval_batch)
    copies = 2 * _FLOAT32 + (setting.compute_bytes if setting.compute_bytes < _FLOAT32 else 0)
    loss = copies * shape.vocabulary * batch.tokens
    largest_layer = layer_activations(shape, batch, [], full=True)
    kept = 2 * trained.parameters if setting.autocast and (trained.adapted or setting.dtype_bytes == _FLOAT32) else 0
    return kept + max(loss, largest_layer)


def activations(shape: Shape, trained: Trained, setting: Setting) -> tuple[int, int]:
    """Bytes that the forward pass saves, and bytes of a recomputed layer.

    With gradient checkpointing each layer saves its input only (Chen et al. 2016, arXiv:1604.06174), and one layer at
    a time is recomputed while the gradients of its MLP are held. Without gradient checkpointing, layers below the
    first adapter save nothing, because no gradient reaches them.
    """
    adapted_in = {layer: [a for a in trained.adapted if a.layer == layer] for layer in range(shape.layers)}
    of_layers = [layer_activations(shape, setting, adapted_in[i], full=not trained.adapted) for i in adapted_in]
    copies = _autocast_copies(shape, trained, setting)
    if setting.checkpointing:
        inputs = shape.layers * shape.hidden * setting.residual_bytes * setting.tokens
        gradients = 3 * shape.intermediate * setting.mlp_bytes * setting.tokens
        return inputs, max(of_layers) + gradients + copies // shape.layers
    first = min((a.layer for a in trained.adapted), default=0)
    return sum(of_layers[first:]) + copies, 0


def layer_activations(shape: Shape, setting: Setting, adapted: Sequence[Adapted], *, full: bool) -> int:
    """Bytes that autograd saves in one decoder layer; each term is for one token."""
    e = setting.compute_bytes
    # A norm saves its input in float32 and, to train its weight, the normalised input.
    total = shape.norms * shape.hidden * (_FLOAT32 + full * _normalised(shape, setting.residual_bytes))
    if shape.head_norms:
        total += (shape.query + shape.key) * (_FLOAT32 + full * _normalised(shape, e))
    total += _attention(shape, setting)
    total += 3 * setting.mlp_bytes * shape.intermediate  # the gate, its activation, and the factor of the activation
    total += _linear_inputs(shape, setting, adapted, full=full)
    return total * setting.tokens


def _normalised(shape: Shape, input_bytes: int) -> int:
    return _FLOAT32 if shape.norms_in_float32 else input_bytes


def _attention(shape: Shape, setting: Setting) -> int:
    """Bytes per token of queries, keys, values and the attention output.

    Under a padding mask sdpa repeats keys and values for all heads, and saves the mask as numbers. sdpa and flash
    attention save one log-sum per head (Dao 2023, arXiv:2307.08691, algorithm 1). Eager attention saves its length x
    length scores: the softmax in float32, its cast, and the tanh of soft-capped scores.
    """
    e = setting.compute_bytes
    if setting.attention == "flash_attention_2":
        return 2 * e * (shape.query + shape.key) + _FLOAT32 * shape.heads
    if setting.attention == "sdpa":
        return 4 * e * shape.query + _FLOAT32 * shape.heads + e * setting.length
    scores = _FLOAT32 + (e if e < _FLOAT32 else 0) + (e if shape.softcapped_attention else 0)
    return 3 * e * shape.query + scores * shape.heads * setting.length


def _linear_inputs(shape: Shape, setting: Setting, adapted: Sequence[Adapted], *, full: bool) -> int:
    """Bytes per token of the inputs that linear layers save: one shared tensor without a cast, else one per layer.

    A frozen layer saves none. PEFT casts the input of an adapter to float32 (`BaseTunerLayer._cast_input_dtype`), and
    autocast casts it back to bfloat16.
    """
    e = setting.compute_bytes
    after_attention = shape.query if setting.attention == "eager" else 0
    if full:
        into_blocks = 2 * shape.hidden if setting.residual_bytes == e else 5 * shape.hidden
        return e * (into_blocks + after_attention + shape.intermediate)
    if setting.compute_bytes == _FLOAT32:
        # sdpa and flash attention have saved their output already.
        own = [a for a in adapted if setting.attention == "eager" or a.name != "o_proj"]
        inputs = sum(width for *_, width in {(a.block, a.name == "o_proj", a.inputs) for a in own})
        return _FLOAT32 * (inputs + sum(a.rank for a in adapted))
    each = 2 if setting.autocast else _FLOAT32
    return each * sum(a.inputs + a.rank for a in adapted)


def _autocast_copies(shape: Shape, trained: Trained, setting: Setting) -> int:
    """Bytes of the bfloat16 copies that autocast makes of float32 weights in linear layers."""
    if not setting.autocast:
        return 0
    adapters = 2 * trained.parameters if trained.adapted else 0
    if setting.four_bit:
        return adapters + 2 * shape.output
    return adapters + (2 * (shape.linear + shape.output) if setting.dtype_bytes == _FLOAT32 else 0)
