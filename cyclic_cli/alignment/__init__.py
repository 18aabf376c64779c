"""Linear maps between the codes of two modalities, fitted in closed form to known pairs and chosen by folds.

moments   sums of outer products of paired codes: all that the maps need of the data
maps      regularised CCA and ridge regression from these sums, as blocks of a common embedding
folds     repeated folds over patients, and the ranks of held-out pairs
choice    the map, its settings and the parts of the codes, by folds over the patients of the pairs
layers    agreement of the neighbourhoods of two modalities, by which outputs of an encoder are chosen
"""
