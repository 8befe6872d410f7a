"""Where is kept what a teacher says?

One HDF5 file, keyed by utterance, that knows what it was built from. `reader` needs torch and
h5py only. `build` builds and verifies it, once for all teachers: what is up to date, what was
interrupted, what is computed again. A kind of teacher (`text_states`, `speech_states`,
`posteriors`; `extraction` chooses by the yaml) is a `build.TeacherStates`, which says:

- `keys`: utterance id to what decides its states, all that a build needs to know before the
  teacher is loaded. Utterances with one key share their states.
- `load()`: loads the teacher, and from then on `identity` (attributes that decide the states,
  without which a cache is refused), `notes` (further ones) and `shape` (of one state).
- `plan(utterance_of)`: some keys, in the order in which they are best computed, each with its
  number of states. All errors that an utterance can cause come from here.
- `answers(keys)`: batches of such keys, each a list with what the teacher says of each key.
- `describe(cache)`: lines for who inspects it; the teacher is not loaded.

An interrupted build goes on where it stopped, to the same file. `verify` finds a state that
the teacher does not say, beyond rounding. Another teacher, text or setting is refused.
tests/cache/test_build.py holds every kind to it.
"""
