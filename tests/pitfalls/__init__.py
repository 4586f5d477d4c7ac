"""What silently corrupts a comparison of models, and proof that each such fault is caught.

Each row is one test, `test_<fault>`: a check that passes on the unchanged harness, and ways to inject the fault, each of which must make the same
check, or a guard on its way, fail and say so (`tests.pitfalls.faults.caught`).

    gguf_defaults           a GGUF backend answers with its own defaults: 16 tokens, repeat penalty 1.1, a temperature
    stale_cache             the base's cached answers are served for other weights at the same path
    adapter_not_applied     the adapter is not applied, or more than the adapter is
    right_padding           a batch is padded on the right, at once or after the first generate
    bos_and_template        no BOS, two of them, or other token ids in one backend than in the other
    wrong_end_token         answers run on, because an end token is missing from the stop set
    pad_is_eos              padding with EOS takes the loss from it; rows without loss are dropped in silence
    sampling_by_default     the model's own generation config samples
    slots_and_prompt_cache  llama.cpp's answer depends on the slot or the prompt cache; the flip rate is ignored
    normalisation_eats_law  normalising makes "clause (a)" and "clause" equal
    set_f1                  F1 over sets takes "right right right" for "right"
    rouge_variants          ROUGE with stemming, with the ASCII tokenizer, or under one signature for both
    bootstrap               standard errors by sqrt(B), resamples of half the size, wins counted as ties
    a_against_a             a model against itself is significant
    interval_of_width_0     0 of 408 is known exactly
    gate_arithmetic         division by a base of 0, rounding up to the floor, improvements that fail, nothing that passes
    save_failure            what could not be saved is reported as done
    merge_base              merged onto another base than trained on, or shown as one with the adapter on 4 bits
    packed_4bit_weights     bitsandbytes packs 4-bit weights for AVX512-BF16, and their gradient is gone
    max_steps_beats_epochs  the epochs asked for are reported, not those that max_steps leaves
    constant_answers        a model that almost always says the same is taken for one that answers
    failures_scored_0       failed answers count as wrong ones; a mean over nothing is a number
"""
