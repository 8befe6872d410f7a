"""How do frames become tokens?

In: encoder frames [B, T, D], a weight for each, their number. Out: `CIFOutput`, one vector
per token and where it lies. Every way to fire (`cif`, `CIF`, `stream.CIFStream`) gives an
utterance the vectors of the loop in the paper, alone or in any batch.
"""

from cif_lobes.cif.module import CIF, CIFOutput, cif, cif_dense

__all__ = ["CIF", "CIFOutput", "cif", "cif_dense"]
