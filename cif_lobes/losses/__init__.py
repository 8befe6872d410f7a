"""What is it trained on?

Pure functions. In: what a network says and what it should say, with masks or lengths. Out:
the sum over real tokens, frames or utterances, in float32: who trains divides by their
number over all processes.

`distillation` wraps those against a teacher's states in modules, which a recipe lists. What
each of them promises, and tests/losses/test_distillation_losses.py holds it to:

- It is a `DistillationLoss`, with a `name`, a `weight`, and a `head` that takes the vectors
  of the network that it is `of` to the width of the teacher. The head is made when the
  teacher's width is known, and only if the loss weighs something. All its parameters are
  the head's, or lie beside it.
- It says by `compare` what the vectors and states [B, U, H] of one teacher layer cost: the
  sum over real tokens, a tensor [], and ratios to be logged (none, or amount and out of
  how much). Of several layers the base class takes the mean.
- A student that says what the teacher says has the minimum. Padding changes nothing,
  whatever stands there. Utterances without tokens, or with one, have a finite loss.
- The teacher gets no gradient. With `heads_only` the network gets none either.
- Nobody waits for the GPU: `TokenStates.rows` are known, masks are not counted.
"""
