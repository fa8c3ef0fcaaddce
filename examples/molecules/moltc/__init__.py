"""MolTC (arXiv 2402.03781) on recalign's rooms: a language model reads pairs of molecules as text and as graphs."""
