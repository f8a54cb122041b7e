# Two commands: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# uv installs in seconds; wheels that pip knows of are known to it too.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)

.PHONY: demo test check chaos chromium clean

demo: .venv/ready
	$(BIN)/python jobs/submit.py jobs/sweep.py configs/demo.yaml $(ARGS)

test: .venv/ready check chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not chaos' $(ARGS)
	# Ray clusters one after the other: two at a time starve each other, and Ray's jobs find the wrong one.
	$(BIN)/python -m pytest -m 'slow and not chaos' $(ARGS)

# 20 workers, nodes and drivers killed while a small study runs; minutes, and not part of `make test`.
chaos: .venv/ready
	$(BIN)/python -m pytest tests/cluster/test_chaos.py -m chaos -s $(ARGS)

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The report's tests open it in a real browser; root on Debian gets one, others are told.
chromium:
	@test -n "$(CHROMIUM)" || command -v chromium || command -v google-chrome || \
	{ apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || \
	{ echo 'error: the report is tested in Chromium: install it, or set CHROMIUM to its path' >&2; exit 1; }

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.8,<1'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	# Compile what the jobs import, once: a dozen Ray workers would each do it at the same time.
	$(BIN)/python -c 'import gift_ray.cluster.tune, gift_ray.tracking.registry, ray.data; \
	from gift_ray.config import schema; from gift_ray.models import encoders, stable_diffusion; \
	stable_diffusion.base_model(schema.ModelConfig()); encoders.clip_encoder("builtin")'
	touch $@

clean:
	rm -rf .venv runs build
