from nightjar.dataset.reader import open_dataset

__all__ = ["open_dataset"]
