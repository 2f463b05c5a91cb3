"""What the double's parser raises."""


class ParsingWithRecommendationException(Exception):
    pass


class MisspellNodeError(Exception):
    pass


class UnsupportedModelError(Exception):
    pass
