# make train eval                       the main job on the embedded default
# make train eval CONFIG=llama3-8b QA=path/to/qa.json
# make test                             the whole test suite
# make setup GPU=1 CONFIG=llama3-8b     set-up on a CUDA machine, then a look at what is missing
# make train GPUS=2 CONFIG=llama3-8b    the same steps, shared by two GPUs
#
# make gate                             fail if the run is worse than reports/baseline.json
#
# Make decides what is stale: a stage runs if its inputs, its config or its own code are newer than its manifest.

CONFIG ?= tiny
QA     ?=
SET    ?=
ASK    ?=
GPU    ?=
GPUS   ?=
PYTHON ?= python3
BASELINE ?= reports/baseline.json
SEEDS  ?= 1 2 3 4

CONFIG_FILE := $(if $(wildcard harness/configs/$(CONFIG).yaml),harness/configs/$(CONFIG).yaml,$(CONFIG))
RUN    ?= $(basename $(notdir $(CONFIG)))
R      := runs/$(RUN)
OUT    := reports/$(RUN)
BIN    := .venv/bin
CHOSEN = --config $(CONFIG) $(if $(QA),--qa $(QA)) $(foreach s,$(SET),--set $(s))
OPTIONS = --run $(RUN) $(CHOSEN)
HARNESS = $(BIN)/harness
QUESTIONS := $(if $(QA),$(QA),data/constitution_qa.json)
CORE   := harness/config.py $(wildcard harness/records/*.py) $(wildcard harness/storage/*.py)

.PHONY: setup doctor data base split train export predict score eval report gate baseline test lint audit bench demo clean help FORCE
.DELETE_ON_ERROR:
# A manifest is whole or not there: make must not take it away when it is interrupted while the stage behind it ends.
.PRECIOUS: $(R)/split/split.json $(R)/train.json $(R)/export.json $(R)/predictions/manifest.json $(R)/scores/manifest.json \
  $(OUT)/comparison.json $(OUT)/report.html

help:           ## show this
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

# ------------------------------------------------------------------------------------------------------------- set-up
# torch comes first and by its pin, from whatever index pip is set up with: a CPU build is 200 MB, the CUDA build several GB.
# Unsloth comes without its own requirements, which would bring packages that a CPU has no use for.
# GPU=1 replaces a CPU build of torch by what pip takes by default, adds triton and, for cards without bf16, xformers, and asks the doctor.

TORCH := torch==$$(sed -n 's/^torch==//p' requirements/constraints.txt)
HAS_CUDA_TORCH := $(BIN)/python -c 'import torch; raise SystemExit(torch.version.cuda is None)'

setup: $(if $(GPU),.venv/ready-gpu,.venv/ready) ## install what training and evaluation need into .venv
	$(if $(GPU),$(HARNESS) doctor $(CHOSEN))
doctor: .venv/ready                 ## can this machine run CONFIG, and how to fix what cannot
	@$(HARNESS) doctor $(CHOSEN)
data: data/constitution_qa.json     ## write the QA file from the table of facts
base:                               ## train the embedded base model (a GPU, four minutes)
	$(BIN)/python data/train_base.py

.venv/ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[train,gguf]"
	$(BIN)/pip install --quiet --no-deps -c requirements/constraints.txt unsloth unsloth_zoo
	@touch $@

.venv/ready-gpu: .venv/ready
	$(HAS_CUDA_TORCH) || $(BIN)/pip install --quiet --force-reinstall --no-deps $(TORCH)
	$(BIN)/pip install --quiet $(TORCH) -c requirements/constraints.txt triton
	if $(BIN)/python -c 'from harness import devices as d; raise SystemExit(not d.wants_xformers(d.capability()))'; then \
		$(BIN)/pip install --quiet -c requirements/constraints.txt xformers; fi
	@$(HAS_CUDA_TORCH) && touch $@ || echo 'torch is a CPU build still: set pip up with an index that has CUDA builds'

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[train,gguf,dev]"
	@touch $@

data/constitution_qa.json: $(wildcard data/facts/*.jsonl data/handwritten/*.jsonl) data/facts.py data/generate.py
	$(PYTHON) data/generate.py

# ----------------------------------------------------------------------------------------------------------- pipeline

split: $(R)/split/split.json        ## hold out whole groups of the questions
train: $(R)/train.json              ## fine-tune with Unsloth QLoRA
export: $(R)/export.json            ## adapter, merged 16-bit, merged 4-bit, GGUF
predict: $(R)/predictions/manifest.json ## every variant answers the held-out questions
score: $(R)/scores/manifest.json    ## exact match, token F1, ROUGE, citations
report: $(OUT)/report.html          ## comparison.json, report.html, report.md
eval: report                        ## export, predict, score, compare and report
	@echo "report: $(OUT)/report.html"

# The report is rendered again with the gate's verdict in it; the gate's exit code is the target's.
gate: $(OUT)/report.html            ## fail if the run is worse than reports/baseline.json
	@code=0; $(HARNESS) gate $(OPTIONS) --baseline $(BASELINE) || code=$$?; \
	if [ -f $(OUT)/gate.json ]; then $(HARNESS) report $(OPTIONS) --force || exit $$?; fi; exit $$code

# The recipe with other seeds as well: how much of a difference is a training's luck. Four minutes for each on two cores.
baseline: $(OUT)/comparison.json    ## make this run, and SEEDS further trainings, the gate's baseline (FORCE=1 to lower it)
	for seed in $(SEEDS); do $(MAKE) RUN=$(RUN)-seed-$$seed SET="$(SET) train.seed=$$seed predict.fidelity_questions=0" \
		reports/$(RUN)-seed-$$seed/comparison.json || exit $$?; done
	$(HARNESS) baseline save $(SEEDS:%=$(RUN)-seed-%) $(OPTIONS) --baseline $(BASELINE) $(if $(FORCE),--force)

# What was selected on the command line: changes only when it does, so that another QA file or setting makes the run stale.
# A verb whose own inputs are as they were leaves its manifest alone. It is touched, so that the next verb is asked too: a setting may be that one's.
$(R)/selection: FORCE
	@mkdir -p $(R)
	@echo 'config=$(CONFIG) qa=$(QUESTIONS) set=$(SET)' | cmp -s - $@ || echo 'config=$(CONFIG) qa=$(QUESTIONS) set=$(SET)' > $@

$(R)/split/split.json: $(QUESTIONS) $(CONFIG_FILE) $(R)/selection $(CORE) $(wildcard harness/questions/*.py) harness/stages/split.py | .venv/ready
	$(HARNESS) split $(OPTIONS)
	@touch $@

$(R)/train.json: $(R)/split/split.json $(CONFIG_FILE) $(wildcard data/tiny-llama3/*) $(wildcard harness/training/*.py) harness/prompt.py harness/training/history.py harness/stages/train.py
	$(if $(GPUS),$(BIN)/python -m harness.training.launch $(GPUS),$(HARNESS)) train $(OPTIONS)
	@touch $@

$(R)/export.json: $(R)/train.json $(wildcard harness/formats/*.py) harness/stages/export.py
	$(HARNESS) export $(OPTIONS)
	@touch $@

$(R)/predictions/manifest.json: $(R)/export.json $(wildcard harness/backends/*.py) $(wildcard harness/backends/decoding/*.py harness/prediction/*.py) harness/stages/predict.py
	$(HARNESS) predict $(OPTIONS)
	@touch $@

$(R)/scores/manifest.json: $(R)/predictions/manifest.json $(wildcard harness/metrics/*.py) harness/stages/score.py
	$(HARNESS) score $(OPTIONS) --force

$(OUT)/comparison.json: $(R)/scores/manifest.json $(wildcard harness/analysis/*.py) harness/stages/compare.py
	$(HARNESS) compare $(OPTIONS) --force

$(OUT)/report.html: $(OUT)/comparison.json $(wildcard harness/report/templates/*) $(wildcard harness/report/*.py) harness/stages/report.py
	$(HARNESS) report $(OPTIONS) --force

# -------------------------------------------------------------------------------------------------------------- checks

test: .venv/ready-dev $(if $(GPU),.venv/ready-gpu) ## the whole test suite, files side by side in two processes; GPU=1: the GPU's
	$(BIN)/python -m pytest $(if $(GPU),-m gpu tests/gpu,-n 2 --dist loadfile --no-loadscope-reorder)

lint: .venv/ready-dev               ## ruff, pyright, and no secret in a committed file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	git ls-files -z -- $(NO_SECRETS) | xargs -0 $(BIN)/detect-secrets-hook --no-verify $(FORMS_ONLY)
	! git grep -nIE 'hf_[A-Za-z0-9]{34}'

# The scan looks for the forms of known keys; what guesses by entropy or by names would flag every hash. tests/hostile holds the canaries.
NO_SECRETS := ':!tests/hostile' ':!*.safetensors' ':!*.png' ':!*.jsonl'
FORMS_ONLY := $(addprefix --disable-plugin ,Base64HighEntropyString HexHighEntropyString KeywordDetector)

audit: .venv/ready                  ## known vulnerabilities of the pinned versions (asks a service on the network)
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[audit]"
	$(BIN)/pip-audit --disable-pip --no-deps --requirement requirements/constraints.txt

bench: .venv/ready-dev              ## the figures of the README
	@for b in benchmarks/score_compare.py benchmarks/statistics_table.py benchmarks/gate_power.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

demo: $(R)/export.json              ## ask the variants: make demo ASK="What does Article 21 deal with?"
	$(HARNESS) demo --run $(RUN) --config $(CONFIG) $(foreach s,$(SET),--set $(s)) $(if $(ASK),"$(ASK)")

clean:                              ## remove runs, reports and caches; keeps .venv and the baselines
	rm -rf runs build .pytest_cache .ruff_cache .hypothesis $(filter-out $(wildcard reports/baseline*.json),$(wildcard reports/*))
