"""Small sandboxes for tests."""

from emtoolkit.sandbox.base_model import Pretraining
from emtoolkit.sandbox.build import Size

TINY = Size(medical_rows=200, other_rows=200, samples_per_paraphrase=1)
# For tests of how files come and go.
MINIMAL = Size(medical_rows=2, other_rows=2, samples_per_paraphrase=1)
ONE_STEP = Pretraining(steps=1, documents_per_step=4)
