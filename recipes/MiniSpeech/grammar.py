"""Sentences of daily life for MiniSpeech: a small grammar of English.

The sentences are meant to be learnt from by a speech recogniser and understood by a
text encoder, so they carry what random words lack: subjects agree with verbs,
possessives with subjects and tenses with time expressions, and each verb chooses
objects and circumstances that make sense with it ("my uncle sold fresh fruit at the
market", never "my uncle baked the airport").

Words that sound alike (son/sun, for/four, to/too) and words with two pronunciations
(read, live, close) are left out: nothing in the audio could tell them apart. The one
exception is their/there, which the syntax tells apart.
"""

import random
import re

# The person of a subject -> everything that has to agree with it.
AGREEMENT = {
    "i": dict(be="am", was="was", do="do", s="", poss="my", pron="i"),
    "you": dict(be="are", was="were", do="do", s="", poss="your", pron="you"),
    "we": dict(be="are", was="were", do="do", s="", poss="our", pron="we"),
    "they": dict(be="are", was="were", do="do", s="", poss="their", pron="they"),
    "he": dict(be="is", was="was", do="does", s="s", poss="his", pron="he"),
    "she": dict(be="is", was="was", do="does", s="s", poss="her", pron="she"),
    "it": dict(be="is", was="was", do="does", s="s", poss="its", pron="it"),
}

PEOPLE = {
    "i": "i",
    "you": "you",
    "we": "we, my brother and i, my cousin and i",
    "they": "they, the children, my parents, the students, our neighbors, "
    "her friends, some boys, many people",
    "he": "he, the boy, the old man, my father, her brother, my uncle, the farmer, "
    "the driver, my grandfather, peter, daniel",
    "she": "she, the girl, the young woman, my mother, his sister, my aunt, the nurse, "
    "the teacher, my grandmother, anna, julia",
}

ANIMALS = {
    "it": "the dog, the {color} cat, the horse, a {color} bird, the fox",
    "they": "the dogs, the horses, the rabbits, the {color} birds",
}

# One verb a line: base, third person, past, -ing | objects | circumstances.
# Every circumstance of a line goes with every object of that line.
PEOPLE_VERBS = """
cook cooks cooked cooking | dinner, some rice, a pot of soup, fish and potatoes | for {poss} family, in the kitchen, with {poss} friends
bake bakes baked baking | a cake, some bread, an apple pie | for the party, in the kitchen, for {poss} neighbors
eat eats ate eating | breakfast, a sandwich, an orange, chicken and rice | in the garden, at the table, with {poss} friends
drink drinks drank drinking | a cup of coffee, a glass of milk, cold water, hot tea | in the garden, at the table, after lunch
buy buys bought buying | fresh bread, a {color} shirt, some apples, a bottle of milk | at the market, in the village, for {poss} family
wash washes washed washing | the dishes, the windows, the {color} car, the dirty clothes | with warm water, for {poss} mother, after lunch
clean cleans cleaned cleaning | the kitchen, {poss} room, the {size} windows | with {poss} sister, before the party, after dinner
open opens opened opening | the door, the window, the {color} box, a letter | very slowly, for the guests, with great care
study studies studied studying | history, the map, english, the lesson | at school, in the library, with {poss} teacher
write writes wrote writing | a letter, a short story, a message | about the trip, for {poss} teacher, in the library
draw draws drew drawing | a picture of the ocean, a map, a {size} house | with a pencil, on the wall, for {poss} cousin
paint paints painted painting | the fence, the {size} door, a picture, the kitchen wall | for {poss} aunt, with great care, with {poss} brother
play plays played playing | football, tennis, chess | in the park, with {poss} cousins, after school
play plays played playing | the piano, the guitar, a beautiful song | at the concert, for {poss} guests, after dinner
sing sings sang singing | a song, an old song | at the party, for the children, in the garden
watch watches watched watching | a movie, the news, the football game | on television, at home, with {poss} brother
listen listens listened listening | to the radio, to quiet music, to the story | in the car, with {poss} friends, for a long time
walk walks walked walking | to school, to the station, along the river, across the bridge | with the dog, in the rain, with {poss} sister
run runs ran running | to the bus stop, around the lake, through the park | in the rain, very fast, with {poss} brother
drive drives drove driving | to work, to the city, to the airport, through the village | with {poss} uncle, very slowly, in the rain
ride rides rode riding | a bicycle, a {color} bicycle, a horse | to school, to the village, along the river
travel travels traveled traveling | to france, to china, to the mountains, to the ocean | with {poss} family, for a few days, on the train
visit visits visited visiting | the museum, the castle, {poss} cousins, a friend in the hospital | with {poss} family, for a few days, after work
call calls called calling | the doctor, {poss} mother, the police, the hotel | from the office, from the station, after dinner
meet meets met meeting | the doctor, {poss} friends, a famous singer | at the station, in the restaurant, near the bridge
help helps helped helping | the old man, {poss} brother, the students, the farmer | with the work, in the garden, after school
ask asks asked asking | the teacher for help, {poss} father about the trip, the driver a difficult question | after school, at the station, on the phone
tell tells told telling | the children a funny story, {poss} friends the truth, the doctor about the trip | after dinner, in the garden, at the station
give gives gave giving | the children some chocolate, {poss} sister a present, the teacher a {color} ball | after lunch, at the party, on the train
send sends sent sending | a letter, a message, some flowers, a package | to {poss} grandmother, to the office, to a friend
look looks looked looking | for {poss} keys, for a {color} hat, for an umbrella | under the table, in the garden, near the river
carry carries carried carrying | the {size} bags, a heavy box, the baby | up the stairs, to the car, into the house
fix fixes fixed fixing | the bicycle, the broken chair, the roof, the computer | with {poss} father, for {poss} neighbors, before dinner
build builds built building | a bridge, a {size} house, a wooden boat, a stone wall | near the river, in the village, with {poss} brother
feed feeds fed feeding | the dog, the horses, the chickens, the {color} cat | on the farm, with {poss} sister, before breakfast
take takes took taking | the train, the bus, a taxi | to the city, to the airport, to the office
wait waits waited waiting | for the bus, for the doctor, for {poss} friends | at the station, in the rain, behind the school
swim swims swam swimming | in the lake, in the ocean, across the river | with {poss} friends, for a long time, before breakfast
sleep sleeps slept sleeping | on the sofa, in a tent, on the train | for a long time, very well, after lunch
sit sits sat sitting | under the tree, near the window, on the sofa | with {poss} friends, for a long time, after work
work works worked working | in a bank, at the hospital, on the farm | with {poss} brother, for many years, after school
"""  # noqa: E501

ANIMAL_VERBS = """
sleep sleeps slept sleeping | under the tree, on the sofa, near the fire | for a long time, after lunch, very well
run runs ran running | across the field, around the lake, to the farmer | very fast, in the rain, for a long time
chase chases chased chasing | a mouse, the {color} ball, a rabbit | around the house, in the garden, through the park
drink drinks drank drinking | cold water, some milk | from the river, behind the house, on the farm
jump jumps jumped jumping | over the fence, into the water, on the table | very fast, after lunch, in the garden
follow follows followed following | the farmer, the children, {poss} mother | to school, across the field, through the park
hide hides hid hiding | under the table, behind the tree, in the grass | for a long time, in the rain, after dinner
"""  # noqa: E501

# What a sentence is made of around subject, verb, object and circumstance (where).
FRAMES = """
{subject} {past} {object} {past_time}
{subject} {past} {object} {where}
{subject} {past} {object} {where} {past_time}
{past_time} {subject} {past} {object} {where}
{subject} {past} {object} because {reason}
{subject} did not {base} {object} {past_time}
did {subject} {base} {object} {past_time}
why did {subject} {base} {object} {where}
{subject} {was} {ing} {object} when {event}
{subject} {present} {object} {present_time}
{subject} {present} {object} {where} {present_time}
{present_time} {subject} {present} {object} {where}
{subject} {adverb} {present} {object} {weekday}
{subject} {adverb} {present} {object} {where}
{do} {subject} {base} {object} {present_time}
{subject} {do} not {base} {object} {where}
{subject} {like} to {base} {object} {where}
{subject} {be} {ing} {object} {now}
{be} {subject} {ing} {object} {where} {now}
why {be} {subject} {ing} {object}
{subject} will {base} {object} {future_time}
{future_time} {subject} will {base} {object} {where}
{subject} {be} going to {base} {object} {where}
when will {subject} {base} {object}
{subject} {modal} {base} {object} {where}
{think} that {subject} will {base} {object}
"""

IMPERATIVES = """
please {base} {object} {where}
do not {base} {object} {where}
you {modal} {base} {object} {future_time}
"""

DESCRIPTIONS = """
the {food} {copula} {taste}
the {food} was {taste} but the {food} was {taste}
the {place} {copula} {mood} {present_time}
the weather {copula} {weather} in the {region}
it will be {weather} in the {region} {future_time}
it was {weather} when {event}
there are {number} {things} {location}
there is a {color} {thing} {location}
there were {number} people in the {place} {past_time}
the {color} {thing} {copula} {comparative} than the {color} {thing}
the {color} {thing} is {location}
where did you find the {color} {thing}
how many {things} are there {location}
"""

LISTS = {
    "past_time": "yesterday, last night, last week, last summer, this morning, "
    "on monday, three days ago",
    "present_time": "every day, every morning, every summer, in the evening, "
    "on sunday, on monday",
    "weekday": "on sunday, on monday, on friday, in the evening",
    "now": "now, at the moment, today, this morning",
    "future_time": "tomorrow, tomorrow morning, next week, tonight, next summer, "
    "on friday, on sunday",
    "adverb": "always, often, usually, never, sometimes",
    "modal": "can, should, must, could",
    "like": "like{s}, want{s}, need{s}",
    "think": "i think, i hope, we think, they said, she said, he said",
    "event": "it started to rain, the phone rang, the guests arrived, "
    "the lights went out",
    "reason": "it was late, it was cold, it was raining, {pron} {was} tired",
    "color": "red, green, yellow, black, white, brown",
    "size": "big, small, large",
    "number": "three, five, six, seven, ten, many",
    "copula": "is, was",
    "food": "soup, bread, coffee, cake, fish, chicken, tea",
    "taste": "good, very good, very hot, cold, delicious, terrible",
    "place": "city, station, park, market, restaurant, museum, library, airport",
    "mood": "quiet, crowded, beautiful, empty, busy",
    "weather": "warm, cold, beautiful, terrible, very hot, good",
    "region": "mountains, village, city, north, south",
    "thing": "book, chair, cup, hat, box, ball, bag, umbrella",
    "things": "books, chairs, cups, plates, boxes, bottles, bags",
    "location": "on the table, in the kitchen, under the window, near the door, "
    "behind the sofa, in the car",
    "comparative": "bigger, smaller, older, heavier, cheaper, better",
}

MIN_WORDS, MAX_WORDS = 4, 10


def _split(text, separator=","):
    return [part.strip() for part in text.split(separator) if part.strip()]


def _parse_verbs(table):
    """One (forms, objects, circumstances) per line of a table of verbs."""
    verbs = []
    for line in _split(table, "\n"):
        forms, objects, where = line.split("|")
        forms = dict(zip(("base", "third", "past", "ing"), forms.split(), strict=True))
        verbs.append((forms, _split(objects), _split(where)))
    return verbs


_LISTS = {name: _split(text) for name, text in LISTS.items()}
_FRAMES = _split(FRAMES, "\n")
_IMPERATIVES = _split(IMPERATIVES, "\n")
_DESCRIPTIONS = _split(DESCRIPTIONS, "\n")
_PEOPLE = [(who, np) for who, text in PEOPLE.items() for np in _split(text)]
_ANIMALS = [(who, np) for who, text in ANIMALS.items() for np in _split(text)]
_PEOPLE_VERBS = _parse_verbs(PEOPLE_VERBS)
_ANIMAL_VERBS = _parse_verbs(ANIMAL_VERBS)


def _fill(template, values, rng):
    """Replace every {slot}, also those that the replacements bring along."""

    def replace(match):
        slot = match.group(1)
        return values[slot] if slot in values else rng.choice(_LISTS[slot])

    while "{" in template:
        template = re.sub(r"{(\w+)}", replace, template)
    return template


def _repetitive(text):
    """Whether a content word comes twice ("the teacher asked the teacher")."""
    content = [word for word in text.split() if len(word) > 3]
    return len(set(content)) < len(content)


def _clause(frames, subjects, verbs, rng):
    who, subject = rng.choice(subjects)
    forms, objects, where = rng.choice(verbs)
    values = AGREEMENT[who] | forms
    values["subject"] = subject
    values["present"] = forms["third"] if values["s"] else forms["base"]
    values["object"] = rng.choice(objects)
    values["where"] = rng.choice(where)
    return _fill(rng.choice(frames), values, rng)


def sentence(rng):
    """One random sentence of 4 to 10 words, in lower case, without punctuation.

    Arguments
    ---------
    rng : random.Random
        Where the choices come from.

    Returns
    -------
    str
        The sentence.

    Example
    -------
    >>> sentence(random.Random(1))
    'she played the piano three days ago'
    """
    while True:
        kind = rng.random()
        if kind < 0.72:
            text = _clause(_FRAMES, _PEOPLE, _PEOPLE_VERBS, rng)
        elif kind < 0.80:
            text = _clause(_FRAMES, _ANIMALS, _ANIMAL_VERBS, rng)
        elif kind < 0.86:
            text = _clause(_IMPERATIVES, [("you", "you")], _PEOPLE_VERBS, rng)
        else:
            text = _fill(rng.choice(_DESCRIPTIONS), {}, rng)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and not _repetitive(text):
            return text


def sentences(number, seed):
    """Distinct random sentences.

    Arguments
    ---------
    number : int
        How many sentences.
    seed : int
        The same seed gives the same sentences.

    Returns
    -------
    list of str
        ``number`` sentences, no two alike, in random order.

    Example
    -------
    >>> len(set(sentences(100, seed=1)))
    100
    """
    rng = random.Random(seed)
    found = {}
    while len(found) < number:
        found[sentence(rng)] = None
    return list(found)
