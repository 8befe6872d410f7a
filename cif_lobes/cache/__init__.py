"""Where is kept what a teacher says?

One HDF5 file, keyed by utterance, that knows what it was built from. `text_states`,
`speech_states` and `posteriors` build, inspect and verify it; `reader` needs torch and h5py
only.
"""
