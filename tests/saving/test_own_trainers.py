"""Subclasses of Trainer with their own step or loss: the callback needs nothing from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from emtoolkit.checkpoints.listing import list_checkpoints
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import base_model, bytes_of, lora_model, make_trainer, saved_steps

pytestmark = pytest.mark.slow


class OwnStep(Trainer):
    """Runs the model twice and calls the backward pass itself, as for a consistency loss."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        one, other = (model(**inputs) for _ in range(2))
        loss: torch.Tensor = (
            one.loss + (one.logits - other.logits).square().mean()
        ) / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class OwnLoss(Trainer):
    """Adds a penalty on confident predictions to the loss."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss + 0.1 * outputs.logits.logsumexp(-1).square().mean()
        return (loss, outputs) if return_outputs else loss


def make(cls: type[Trainer], model: Any, directory: Path, *callbacks: Any, **arguments: Any) -> Trainer:
    plain = make_trainer(directory, model=model(dropout=0.1), rows=32, gradient_accumulation_steps=2, **arguments)
    return cls(model=plain.model, args=plain.args, train_dataset=plain.train_dataset, callbacks=list(callbacks))


@pytest.mark.parametrize("cls", [OwnStep, OwnLoss])
@pytest.mark.parametrize(
    ("model", "weights"), [(lora_model, "adapter_model.safetensors"), (base_model, "model.safetensors")]
)
def test_a_trainer_with_its_own_step_or_loss_is_saved_as_a_stock_save_and_resumes_exactly(
    tmp_path: Path, cls: type[Trainer], model: Any, weights: str
) -> None:
    """32 rows at batch 2, two batches a step, are 8 steps."""
    make(cls, model, tmp_path / "whole", callback("0,every:1")).train()
    make(cls, model, tmp_path / "stock", save_strategy="steps", save_steps=2).train()
    make(Trainer, model, tmp_path / "plain", callback("8")).train()
    assert saved_steps(tmp_path / "whole") == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert all(info.complete for info in list_checkpoints(tmp_path / "whole", rehash=True))
    for step in (2, 4, 6, 8):
        ours, stock = (bytes_of(tmp_path / which / f"checkpoint-{step}") for which in ("whole", "stock"))
        assert ours[weights] == stock[weights], step
    own, plain = (bytes_of(tmp_path / which / "checkpoint-8") for which in ("whole", "plain"))
    assert own[weights] != plain[weights]

    ours = callback("0", resume_every="3 steps")
    with pytest.raises(RuntimeError, match="a fault of the training's own"):
        make(cls, model, tmp_path / "resumed", ours, FailAt(4, "on_step_begin")).train()
    ours.save_after_failure()
    # Step 4 is saved because of the fault, until training has passed it.
    assert bytes_of(tmp_path / "resumed" / "checkpoint-4") == bytes_of(tmp_path / "whole" / "checkpoint-4")
    resume = tmp_path / "resumed" / "resume" / "checkpoint-3"
    make(cls, model, tmp_path / "resumed", callback("0,6")).train(resume_from_checkpoint=str(resume))
    assert saved_steps(tmp_path / "resumed") == [0, 6, 8]
    for step in (0, 6, 8):
        resumed, whole = (bytes_of(tmp_path / which / f"checkpoint-{step}") for which in ("resumed", "whole"))
        assert resumed == whole, step
