"""`python -m transformer_elmo.torchvision_stand_in`: see `install`."""

from transformer_elmo.torchvision_stand_in.install import main

if __name__ == "__main__":
    main()
