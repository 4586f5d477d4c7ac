# make train eval                       the main job on the embedded default
# make train eval CONFIG=llama3-8b QA=path/to/qa.json
# make test                             the whole test suite
#
# make gate                             fail if the run is worse than reports/baseline.json
#
# Make decides what is stale: a stage runs if its inputs, its config or its own code are newer than its manifest.

CONFIG ?= tiny
QA     ?=
SET    ?=
ASK    ?=
PYTHON ?= python3
BASELINE ?= reports/baseline.json

CONFIG_FILE := $(if $(wildcard harness/configs/$(CONFIG).yaml),harness/configs/$(CONFIG).yaml,$(CONFIG))
RUN    ?= $(basename $(notdir $(CONFIG)))
R      := runs/$(RUN)
OUT    := reports/$(RUN)
BIN    := .venv/bin
OPTIONS = --run $(RUN) --config $(CONFIG) $(if $(QA),--qa $(QA)) $(foreach s,$(SET),--set $(s))
HARNESS = $(BIN)/harness
QUESTIONS := $(if $(QA),$(QA),data/constitution_qa.json)
CORE   := harness/config.py harness/records.py harness/store.py

.PHONY: setup data base split train export predict score eval report gate test lint bench demo clean help FORCE
.DELETE_ON_ERROR:

help:           ## show this
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

# ------------------------------------------------------------------------------------------------------------- set-up
# torch comes first and by its pin, from whatever index pip is set up with: a CPU build is 200 MB, the CUDA build several GB.
# Unsloth comes without its own requirements, which would bring packages that a CPU has no use for.

setup: .venv/ready                  ## install what training and evaluation need into .venv
data: data/constitution_qa.json     ## write the QA file from the table of facts
base:                               ## train the embedded base model (a GPU, four minutes)
	$(BIN)/python data/train_base.py

.venv/ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==$$(sed -n 's/^torch==//p' requirements/constraints.txt)
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e ".[train,gguf]"
	$(BIN)/pip install --quiet --no-deps -c requirements/constraints.txt unsloth unsloth_zoo
	@touch $@

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

# What was selected on the command line: changes only when it does, so that another QA file or setting makes the run stale.
$(R)/selection: FORCE
	@mkdir -p $(R)
	@echo 'config=$(CONFIG) qa=$(QUESTIONS) set=$(SET)' | cmp -s - $@ || echo 'config=$(CONFIG) qa=$(QUESTIONS) set=$(SET)' > $@

$(R)/split/split.json: $(QUESTIONS) $(CONFIG_FILE) $(R)/selection $(CORE) $(wildcard harness/questions/*.py) harness/stages/split.py | .venv/ready
	$(HARNESS) split $(OPTIONS)

$(R)/train.json: $(R)/split/split.json $(CONFIG_FILE) $(wildcard data/tiny-llama3/*) harness/prompt.py harness/history.py harness/stages/train.py
	$(HARNESS) train $(OPTIONS)

$(R)/export.json: $(R)/train.json $(wildcard harness/formats/*.py) harness/stages/export.py
	$(HARNESS) export $(OPTIONS)

$(R)/predictions/manifest.json: $(R)/export.json $(wildcard harness/backends/*.py) harness/jobs.py harness/stages/predict.py
	$(HARNESS) predict $(OPTIONS)

$(R)/scores/manifest.json: $(R)/predictions/manifest.json $(wildcard harness/metrics/*.py) harness/stages/score.py
	$(HARNESS) score $(OPTIONS) --force

$(OUT)/comparison.json: $(R)/scores/manifest.json $(wildcard harness/analysis/*.py) harness/stages/compare.py
	$(HARNESS) compare $(OPTIONS) --force

$(OUT)/report.html: $(OUT)/comparison.json $(wildcard harness/rendering/templates/*) $(wildcard harness/rendering/*.py) harness/stages/report.py
	$(HARNESS) report $(OPTIONS) --force

# -------------------------------------------------------------------------------------------------------------- checks

test: .venv/ready-dev               ## the whole test suite
	$(BIN)/python -m pytest

lint: .venv/ready-dev               ## ruff and pyright
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/ready-dev              ## the figures of the README
	@for b in benchmarks/score_compare.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

demo: $(R)/export.json              ## ask the variants: make demo ASK="What does Article 21 deal with?"
	$(HARNESS) demo --run $(RUN) --config $(CONFIG) $(foreach s,$(SET),--set $(s)) $(if $(ASK),"$(ASK)")

clean:                              ## remove runs, reports and caches; keeps .venv and the baselines
	rm -rf runs build .pytest_cache .ruff_cache .hypothesis $(filter-out $(wildcard reports/baseline*.json),$(wildcard reports/*))
