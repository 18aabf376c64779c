"""Finds identities by Presidio's pattern recognisers, as the comparison of `deidentification.py` with `cyclic`.

    python presidio_patterns.py < TEXTS

The script runs in its own Python environment with presidio-analyzer. It reads JSON lines with `language`, `countries`
and `text`, and writes for each the list of [start, end, entity, score].

A text is searched by all recognisers of patterns that belong to no country or to one of the text's countries, also by
those that Presidio leaves off by default, and by its recogniser of telephone numbers for these countries. Context words
raise scores as usual. No language model is used, so names are not found: a blank spaCy pipeline finds the words.
"""

import inspect
import json
import logging
import sys
from functools import cache

import spacy
from presidio_analyzer import AnalyzerEngine, PatternRecognizer, RecognizerRegistry, predefined_recognizers
from presidio_analyzer.nlp_engine import SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import PhoneRecognizer

REGIONS = {"uk": "GB"}  # where the telephone library has another code for a country


class BlankEngine(SpacyNlpEngine):
    """Splits texts into words, without a model."""

    def __init__(self, language: str) -> None:
        super().__init__(models=[{"lang_code": language, "model_name": "blank"}])
        self.nlp = {language: spacy.blank(language)}


@cache
def analyzer(language: str, countries: tuple[str, ...]) -> AnalyzerEngine:
    registry = RecognizerRegistry(supported_languages=[language])
    for _, kind in inspect.getmembers(predefined_recognizers, inspect.isclass):
        if issubclass(kind, PatternRecognizer) and kind.COUNTRY_CODE in (None, *countries):
            registry.add_recognizer(kind(supported_language=language))
    regions = [REGIONS.get(country, country.upper()) for country in countries]
    registry.add_recognizer(PhoneRecognizer(supported_language=language, supported_regions=regions))
    return AnalyzerEngine(registry=registry, nlp_engine=BlankEngine(language), supported_languages=[language])


def main() -> None:
    logging.disable(logging.WARNING)
    for line in sys.stdin:
        request = json.loads(line)
        engine = analyzer(request["language"], tuple(request["countries"]))
        found = engine.analyze(request["text"], language=request["language"])
        print(json.dumps([[entity.start, entity.end, entity.entity_type, entity.score] for entity in found]))


if __name__ == "__main__":
    main()
