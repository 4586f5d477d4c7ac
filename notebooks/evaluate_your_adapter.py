# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Did your fine-tuning help?
#
# You have an adapter (a LoRA folder that PEFT or Unsloth saved) and a file of test questions. This notebook has your base and your adapter answer
# the same questions, and tells whether the difference is more than chance.
#
# In Colab: put a checkout of the project beside this notebook, run `%pip install -e ".[train,tables]"` in it, and upload your files.

# %% tags=["parameters"]
ADAPTER = "lora_model"  # folder or hub name
TEST = "test.jsonl"  # rows with question and answer
TRAINED_ON = None  # the file that you trained on: shows whether test questions leaked into training
BASE = None  # none: the base that the adapter names
SETTINGS = []  # for instance ["prompt.template='Q: {question} A: '"]: ask as you trained

# %%
import harness as qh

run = qh.evaluate(
    {"mine": f"adapter:{ADAPTER}"}, TEST, trained_on=TRAINED_ON, base=BASE, settings=SETTINGS, run="notebook"
)
run

# %% [markdown]
# The means, and the difference with its 95% interval:

# %%
run.scores().groupby(["variant", "metric"])["score"].mean().unstack("variant")

# %%
run.pairs()

# %% [markdown]
# Question by question: where the adapter answers otherwise than its base.

# %%
answers = run.answers().pivot(index="id", columns="variant", values="text").join(run.questions().set_index("id"))
answers[answers["base"] != answers["mine"]][["question", "answer", "base", "mine"]].head(20)

# %% [markdown]
# The whole report, with every answer and chart:

# %%
from IPython.display import IFrame

IFrame(str(run.report()), width="100%", height=800)
