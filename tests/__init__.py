# A package and not just a folder: flair installs one of this name, which would come first.
