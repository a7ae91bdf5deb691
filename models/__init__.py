"""The networks that bnfold trains, one file each."""
