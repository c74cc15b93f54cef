"""How good maps, masks and networks are: confusion matrices, IoU, average precision."""
