"""What is the network?

In: waveforms, features or CIF vectors, padded, and their lengths [B], int64. Out: the same.
No output of an utterance depends on how far it was padded.

A recogniser begins with `features`, which read samples, and an `encoder`, which reads
their frames. Either is a `torch.nn.Module` with four members, and nothing else of it is
known to training, recognition, export, ONNX and pictures:

forward(x, x_lengths) : (torch.Tensor, torch.Tensor)
    From x [B, samples] or [B, T, F] and lengths [B], of 1 or more, to frames [B, T', D] and
    their number [B]. Whatever x holds beyond an utterance's end, its frames are those that
    it has alone.
output_lengths(x_lengths) : torch.Tensor
    That number, of the lengths alone: integers of any shape, on any device.
hop, centre : int or float
    The clock: output frame t stands for what is around place `centre + t * hop` of the
    input, counted in its samples or frames from 0. A frame lasts as long as one hop;
    `cif_lobes.inference.alignment.frame_clock` makes seconds of both clocks.

tests/nets/test_contract.py sees to it. A stream knows more of its network: see `stream`.
"""
