"""The libraries that pyengm integrates with are imported by their own modules alone."""

import subprocess
import sys

LIBRARIES = ("lightning", "accelerate", "transformers", "timm")


def test_import_pyengm():
    code = f"import sys, pyengm, pyengm.integrations; print([n for n in {LIBRARIES} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
