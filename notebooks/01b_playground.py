# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Playground: place the six points yourself
#
# Beside [lecture 1](../lectures/01_drift.md). Drag the crosses, or add some by clicking; choose an
# objective and its weight on each side; press Train. Both sides start at one base model and see the
# same points, steps and noise. It is the course's own training loop, live.
#
# ![Samples of the base and after fine-tuning with each objective](../lectures/_static/figures/samples.png)
#
# *Things to try.* Put all crosses on one class: which class loses most? Spread them far out: does
# output preservation still hold the others? How large must L2's weight be until the new cloud stays
# away from the crosses?

# %%
from toy2d.playground.view import Playground

board = Playground.open("../runs", left="standard", right="output")
board

# %% [markdown]
# The same from code: `board.place` moves the crosses, `board.train()` is the button, and
# `board.sides[0].frame` holds the numbers of the left side.

# %%
board.train()
for side in board.sides:
    kl = {name: round(mean, 3) for name, (mean, _) in side.frame.kl.items()}
    print(f"{side.spec}: KL(base || tuned) in nats {kl}")
    print(f"   log density of the points up by {side.frame.learnt:.2f} nats")

# %% [markdown]
# **Claim.** At these weights output preservation drifts less than a tenth of standard's path KL, and
# the points have become likelier under both.

# %%
standard, output = (side.frame for side in board.sides)
assert output.path_kl[0] < 0.1 * standard.path_kl[0]
assert min(standard.learnt, output.learnt) > 0
board.picture()
