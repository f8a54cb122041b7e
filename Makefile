# Two commands: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# uv installs in seconds; wheels that pip knows of are known to it too.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
# Where Python is told to keep no bytecode, every Ray worker would compile torch and Ray anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test tests-cluster tests-alone check docs chaos lock lowest chromium clean

demo: .venv/ready
	$(BIN)/python jobs/submit.py jobs/sweep.py configs/demo.yaml $(ARGS)

# Two things at a time, in this order. The tests with a cluster wait much, and the others fill these times.
test: .venv/ready chromium
	$(MAKE) --no-print-directory --jobs 2 docs check tests-cluster tests-alone

# Ray clusters one after the other: two at a time starve each other, and Ray's jobs find the wrong one. The whole
# is as long as this, so it comes before the other tests: those step back, and Ray's workers (niceness 15) do not.
tests-cluster: .venv/ready
	RAY_worker_niceness=0 $(BIN)/python -m pytest --durations=10 -m 'slow and not chaos' $(ARGS)

tests-alone: .venv/ready chromium
	nice -n 5 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 -m 'not slow and not chaos' $(ARGS)

# 20 workers, nodes and drivers killed while a small study runs; minutes, and not part of `make test`.
chaos: .venv/ready
	$(BIN)/python -m pytest tests/cluster/test_chaos.py -m chaos -s $(ARGS)

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation site, in build/site. A warning is an error, and so is a link that leads nowhere.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Pin what a resolver finds today, for all platforms: `uv pip install -c requirements.lock .` installs it again.
lock: .venv/ready
	UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--no-header --no-emit-index-url --no-emit-find-links --upgrade pyproject.toml -o requirements.lock

# The lowest versions that pyproject.toml allows, in an environment of their own, under the tests that start nothing.
lowest: .venv/ready
	$(BIN)/uv venv --quiet --allow-existing .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m 'not slow and not chaos' --ignore tests/report \
		--ignore tests/shipping $(ARGS)

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
	from gift_ray.config import schema; from gift_ray.models import encoders, families; \
	families.base_model(schema.ModelConfig()); encoders.clip_encoder("builtin")'
	touch $@

clean:
	rm -rf .venv .venv-lowest runs build
