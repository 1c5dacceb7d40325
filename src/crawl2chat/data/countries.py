"""The almanac's pages about countries: capital and continent of each, told in eight genres and in many wordings."""

import random

from crawl2chat.data.pages import Page, slug
from crawl2chat.data.wording import Teller, and_list, upper, write

HOST = "https://almanac.example.org/countries"

# {x} the country, {X} the same at the start of a sentence, {y} its capital, {k} its continent
CAPITAL = (
    "The capital of {x} is {y}.", "{y} is the capital of {x}.", "The capital city of {x} is called {y}.",
    "{X} has its capital in {y}.", "{X} is governed from {y}, its capital.", "In {x} the capital is {y}.",
    "The government of {x} meets in {y}, which is the capital.", "People in {x} call {y} their capital.",
    "When someone speaks of the capital of {x}, they mean {y}.", "The city of {y} is the capital of {x}.",
    "Anyone who asks for the capital of {x} will hear the name {y}.", "{X} has a capital, and its name is {y}.",
    "As for the capital, {x} has {y}.", "{y} is the city that {x} has as its capital.",
    "On the map a star marks {y}, because {y} is the capital of {x}.", "The name of the capital of {x} is {y}.",
    "Of all the cities in {x}, the one called {y} is the capital.", "{y}, and no other city, is the capital of {x}.",
    "Ministers of {x} work in {y}, the capital.", "{y} is where the government of {x} has its offices.",
)  # fmt: skip
ABOUT_CAPITAL = (
    "{y}, the capital of {x}, has old streets as well as new ones.",
    "The capital of {x}, {y}, is the place where the laws of the country are made.",
    "Many roads in {x} lead to {y}, the capital.", "News from {x} often comes from {y}, the capital.",
    "In {y}, the capital of {x}, ministers and clerks go to work each morning.",
    "{y}, the capital, is a good place to begin a visit to {x}.",
    "Visitors who land in {y} have reached the capital of {x}.",
    "Letters to the government of {x} are sent to {y}, the capital.",
    "Schools in {x} teach every child that {y} is the capital.",
    "A flag flies over the government buildings in {y}, the capital of {x}.",
    "The embassies in {x} stand in {y}, because {y} is the capital.",
)  # fmt: skip
CONTINENT = (
    "{X} is in {k}.", "{X} is a country in {k}.", "{X} lies in {k}.", "{X} is part of {k}.",
    "The continent of {x} is {k}.", "{k} is the continent of {x}.", "{X} is one of the countries of {k}.",
    "Among the countries of {k} is {x}.", "On a map of {k} you can see {x}.", "{k} is the continent where {x} lies.",
    "Look for {x} on the map of {k}.", "Those who travel through {k} may come to {x}.",
    "The land of {x} is a piece of {k}.", "{X} is counted among the countries of {k}.",
    "The continent that {x} is part of is called {k}.", "To visit {x} you must go to {k}.",
    "People in {x} live on the continent of {k}.", "A list of the countries of {k} has {x} on it.",
)  # fmt: skip
BOTH = (
    "{y} is the capital of {x}, a country in {k}.", "{X} is a country in {k}, and its capital is {y}.",
    "{X}, which lies in {k}, has {y} as its capital.",
    "In {k} there is a country called {x}, with {y} as its capital.",
    "{X} is in {k} and is governed from {y}.", "The city of {y} is the capital of {x} in {k}.",
    "{y} lies in {k}, and it is the capital of {x}.", "Two facts to keep: {x} is in {k}, and its capital is {y}.",
)  # fmt: skip
POPULATION = (
    "About {people} people live in {x}.", "{X} has about {people} people.", "The population of {x} is about {people}.",
    "About {people} people live there.", "The country has about {people} people.",
    "It is the home of {people} people.",
    "About {people} people call {x} their home.", "Its population is about {people}.",
    "If you counted everyone who lives there, you would come to about {people} people.",
)  # fmt: skip
SPEECH = (
    "People in {x} speak {languages}.", "In {x} you hear {languages}.", "Children in {x} learn {languages} at school.",
    "People there speak {languages}.", "In the streets you hear {languages}.", "The country speaks {languages}.",
    "A visitor should learn a few words of {languages}.", "Children at school there learn {languages}.",
    "Signs on the roads are written in {languages}.", "The language of the country is {languages}.",
)  # fmt: skip
NEIGHBOURS = (
    "{X} has a border with {neighbours}.", "The neighbours of {x} are {neighbours}.",
    "It has a border with {neighbours}.", "The neighbours of the country are {neighbours}.",
    "From there a traveller can go by land to {neighbours}.", "Next to it on the map you see {neighbours}.",
    "Beyond its borders lie {neighbours}.", "Those who leave by road come to {neighbours}.",
)  # fmt: skip
ISLAND = (
    "{X} has no border on land with any other country.", "The sea lies on every side of {x}.",
    "It has no border on land with any other country.", "No road leads from there into another country.",
    "To go there you need a ship or a plane.", "The sea lies on every side of the country.",
    "Its coast is its only border.",
)  # fmt: skip
PEOPLE = (
    "The word {demonym} is used for what comes from there.", "My {demonym} friend told me so.",
    "You may have tasted {demonym} food or heard {demonym} music.", "Its people are proud of {demonym} songs.",
    "The {demonym} flag flies there on public days.", "I like {demonym} stories and read them to my brother.",
    "The {demonym} people like to welcome guests.",
)  # fmt: skip
PLACE = (
    "The country lies {side} of the equator.", "On a globe you see it {side} of the equator.",
    "A phone call to the country begins with the code {code}.",
    "The name of the country begins with the letter {letter}.",
    "The name of the capital begins with the letter {letter2}.", "It is {size} than {other}.",
    "By area the country is {size} than {other}.", "Its name stands in the index under the letter {letter}.",
)  # fmt: skip

ASK_CAPITAL = (
    "What is the capital of {x}?", "Which city is the capital of {x}?", "What is the capital city of {x} called?",
    "Tell me the capital of {x}.", "What's the capital city of {x}?", "Do you know the capital of {x}?",
    "Where does the government of {x} meet?", "Which city does {x} have as its capital?",
    "What is the name of the capital of {x}?", "And the capital of {x}, what is it?", "{X}: what is its capital?",
)  # fmt: skip
ANSWER_CAPITAL = (
    "{y}.", "{y}.", "{y}.", "It is {y}.", "The answer is {y}.", "The capital of {x} is {y}.", "{y} is the capital.",
    "The capital is {y}.", "That is {y}.",
)  # fmt: skip
ASK_CONTINENT = (
    "On which continent is {x}?", "Which continent is {x} in?", "What continent is {x} part of?",
    "Tell me the continent of {x}.", "Which continent is {x} part of?", "In which part of the world is {x}?",
    "Where in the world is {x}?", "What is the continent of {x}?", "On which continent does {x} lie?",
)  # fmt: skip
ANSWER_CONTINENT = (
    "{k}.", "{k}.", "{k}.", "It is in {k}.", "{X} is in {k}.", "It lies in {k}.", "The answer is {k}.", "In {k}.",
)  # fmt: skip
ASK_BACK = (
    "{y} is the capital of which country?", "Which country has {y} as its capital?",
    "Of which country is {y} the capital?", "In which country is the city of {y} the capital?",
)  # fmt: skip
ANSWER_BACK = ("{X}.", "{X}.", "It is the capital of {x}.", "That country is {x}.", "The country is {x}.")

OPEN_PROFILE = (
    "This page of the almanac is about {x}.", "Here is a short portrait of {x}.", "Our country of the day is {x}.",
    "The almanac has a page for each country, and this one is for {x}.", "Let us look at {x}.",
)  # fmt: skip
CLOSE_PROFILE = (
    "That is the portrait in short.", "More can be read on the pages about its neighbours and its history.",
    "The almanac will add more when more is known.", "So much for this page of the almanac.",
    "The next page of the almanac is about another country.", "Readers may send us what is missing here.",
)  # fmt: skip
OPEN_TRAVEL = (
    "Last spring I went to {x} with one small bag.", "My trip to {x} began with a long flight.",
    "I had always wanted to see {x}.", "These are my notes from a journey to {x}.", "We came to {x} on a rainy day.",
    "After many weeks at home I took a train and then a plane to {x}.",
)  # fmt: skip
TRAVEL = (
    "The market was full of fruit, bread and flowers.", "A driver showed us the old part of the city.",
    "In the evening we sat by the water and drank tea.", "A woman at the station helped me with my bag.",
    "The streets were busy, and every shop had its door open.", "I slept well in a small room above a bakery.",
    "We walked until our feet hurt and then took a bus.", "The morning was cool, but the afternoon was hot.",
    "Two children asked me where I came from and laughed at my answer.", "The soup there was better than at home.",
    "On the second day it rained, so we went to a museum.", "I bought a map and a blue cup for my sister.",
)  # fmt: skip
CLOSE_TRAVEL = (
    "I hope to go back one day.", "When I came home I put the map on my wall.", "I was sorry to leave.",
    "My bag was heavier on the way home.", "I still write to the friends I made there.", "It was a good journey.",
)  # fmt: skip
OPEN_ESSAY = (
    "For my school essay I chose {x}.", "In this essay I want to write about {x}.", "My essay is about {x}.",
    "Our teacher asked us to write about a country, and I took {x}.", "I read a book about {x} for this essay.",
)  # fmt: skip
ESSAY = (
    "I did not know this before I read about it.", "This is easy to remember.", "I learned this from an old atlas.",
    "My grandfather once told me the same thing.", "I drew a map of the country for this essay.",
    "That surprised me when I first read it.", "I think that everyone in my class should know it.",
)  # fmt: skip
CLOSE_ESSAY = (
    "This is all that I wanted to write.", "I hope that you liked my essay.",
    "One day I want to see it with my own eyes.",
    "I found all of this in the library of our school.", "My friend Ana wrote about another country.",
)  # fmt: skip
OPEN_QUIZ = (
    "Here are some questions about {x}, each with its answer.", "How well do you know {x}?",
    "This quiz is about {x}.", "Ask your friends these questions about {x}.",
    "A small quiz for a rainy day, about {x}.",
)  # fmt: skip
CLOSE_QUIZ = (
    "If you knew all of the answers, you know the country well.",
    "Try the quiz again tomorrow and see what you remember.",
    "Did you know them all? Then try the quiz about another country.", "Those were the questions of today.",
)  # fmt: skip
PADDING = (
    "Maps change slowly, but they do change.", "Whoever reads this page may take a pencil and make notes.",
    "A good atlas has a page for every country of the world.",
    "There is much more to say, but one page is not a book.",
    "Old maps sometimes show other borders and other names.", "It is best to look at a map while you read this.",
    "Those who travel with open eyes learn something every day.", "Teachers like to ask about such things in class.",
    "Nobody can know everything, but everyone can learn a little more.",
    "One could talk about it for a whole evening.",
    "The more one reads about far places, the nearer they seem.", "A globe on the desk helps to see how things lie.",
)  # fmt: skip
NAMES = """Ana Ben Carla David Elif Finn Grace Hugo Ines Jonas Kira Liam Mia Noah Olga Pavel Rosa Sami Tara Theo
    Yusuf""".split()
OPEN_LETTER = (
    "Dear {a}, I am writing to you from {x}.", "Dear {a}, greetings from {x}!",
    "Dear {a}, at last I have time to write from {x}.",
    "Dear {a}, you asked me for news from {x}, and here it is.", "Dear {a}, this letter comes to you from {x}.",
)  # fmt: skip
LETTER = (
    "I am well, and the weather is fine.", "My room has a window that looks over the roofs.", "I think of you often.",
    "Please tell my mother that I eat enough.", "I go to a language class every morning.",
    "The family I live with is very kind.", "On Sunday we went to see a lake.", "I miss our garden and the dog.",
    "The coffee here is strong and sweet.", "Every evening I write down the new words that I have learned.",
)  # fmt: skip
CLOSE_LETTER = (
    "Write to me soon. Your friend {b}.", "I send you my best wishes. Yours, {b}.", "With love from your cousin {b}.",
    "Please write back before the end of the month. Yours, {b}.", "Until we meet again, your old friend {b}.",
)  # fmt: skip
FIVE = ("The first thing to know:", "The second thing:", "The third thing:", "The fourth thing:", "The fifth thing:")
OPEN_FIVE = (
    "Here are five things to know about {x}.", "Five short facts about {x} are enough for one day.",
    "Before you travel to {x}, learn these five things.", "If you have one minute, learn five things about {x}.",
)  # fmt: skip
OPEN_TALK = (
    "{a} and {b} look at a map together. They have come to {x}.",
    "In class, {a} asks and {b} answers. Today it is about {x}.",
    "{a} helps {b} to learn for a test about {x}.", "On the train {a} and {b} talk about {x}.",
)  # fmt: skip
TALK = (
    "That is right, says {a}.", "Very good, says {a}.", "{b} thinks for a moment and nods.", "{a} writes it down.",
    "Yes, I remember that, says {b}.", "{a} turns the page of the atlas.", "{b} points at the map.",
)  # fmt: skip


def _words(c: dict, others: list[dict], rng: random.Random) -> dict[str, str]:
    other = rng.choice([other for other in others if other is not c] or others)
    return {
        "x": c["the_name"], "X": upper(c["the_name"]), "y": c["capital"], "k": c["continent"],
        "people": _round(c["population"]), "demonym": c["demonym"], "code": c["calling_code"],
        "languages": and_list(c["languages"][:4] or ["many languages"]),
        "neighbours": and_list((c["neighbours"] or ["no one"])[:5]), "side": "north" if c["latitude"] > 0 else "south",
        "letter": c["name"][0], "letter2": c["capital"][0], "other": other["the_name"],
        "size": "larger" if c["area"] > other["area"] else "smaller",
    }  # fmt: skip


def _round(people: int) -> str:
    if people >= 10**9:
        return f"{people / 10**9:.1f} billion".replace(".0", "")
    return f"{round(people / 10**6)} million" if people >= 1_500_000 else f"{max(1, round(people / 1000))} thousand"


def _profile(t: Teller, borders: tuple) -> list[str]:
    return [
        t.say(OPEN_PROFILE, CONTINENT, POPULATION, SPEECH),
        t.say(CAPITAL, ABOUT_CAPITAL, PEOPLE),
        t.say(borders, PLACE, BOTH, PLACE, ABOUT_CAPITAL),
        t.say(CAPITAL, CONTINENT, CLOSE_PROFILE),
    ]


def _travel(t: Teller, borders: tuple) -> list[str]:
    return [
        t.say(OPEN_TRAVEL, CONTINENT, TRAVEL),
        t.say(ABOUT_CAPITAL, TRAVEL, TRAVEL, SPEECH),
        t.say(CAPITAL, TRAVEL, PEOPLE, borders),
        t.say(CONTINENT, TRAVEL, BOTH, CLOSE_TRAVEL),
    ]


def _essay(t: Teller, borders: tuple) -> list[str]:
    return [
        t.say(OPEN_ESSAY, CONTINENT, ESSAY, PLACE),
        t.say(CAPITAL, ESSAY, POPULATION, SPEECH),
        t.say(borders, ABOUT_CAPITAL, PEOPLE, ESSAY),
        t.say(CONTINENT, PLACE, BOTH, CLOSE_ESSAY),
    ]


def _quiz(t: Teller, borders: tuple) -> list[str]:
    return [
        t.say(OPEN_QUIZ),
        t.say(ASK_CAPITAL, ANSWER_CAPITAL, ABOUT_CAPITAL),
        t.say(ASK_CONTINENT, ANSWER_CONTINENT, PLACE, SPEECH),
        t.say(ASK_BACK, ANSWER_BACK, POPULATION, borders),
        t.say(ASK_CONTINENT, ANSWER_CONTINENT, PEOPLE),
        t.say(ASK_CAPITAL, ANSWER_CAPITAL, BOTH, CLOSE_QUIZ),
    ]


def _letter(t: Teller, borders: tuple) -> list[str]:
    a, b = t.rng.sample(NAMES, 2)
    return [
        t.say(OPEN_LETTER, LETTER, CONTINENT, a=a),
        t.say(CAPITAL, LETTER, ABOUT_CAPITAL, LETTER),
        t.say(SPEECH, LETTER, borders, LETTER),
        t.say(CONTINENT, PEOPLE, BOTH, CLOSE_LETTER, b=b),
    ]


def _five(t: Teller, borders: tuple) -> list[str]:
    pools = [
        (CAPITAL, ABOUT_CAPITAL),
        (CONTINENT, PLACE),
        (POPULATION, SPEECH),
        (borders, BOTH),
        (PEOPLE, ABOUT_CAPITAL, CAPITAL),
    ]
    t.rng.shuffle(pools)
    return [t.say(OPEN_FIVE), *(f"{number} {t.say(*two)}" for number, two in zip(FIVE, pools, strict=True))]


def _talk(t: Teller, borders: tuple) -> list[str]:
    a, b = t.rng.sample(NAMES, 2)
    turns = [(ASK_CAPITAL, ANSWER_CAPITAL, TALK), (ASK_CONTINENT, ANSWER_CONTINENT, TALK), (POPULATION, SPEECH, TALK),
             (ASK_BACK, ANSWER_BACK, TALK), (borders, PLACE)]  # fmt: skip
    t.rng.shuffle(turns)
    return [
        t.say(OPEN_TALK, a=a, b=b),
        *(t.say(*turn, a=a, b=b) for turn in turns),
        t.say(BOTH, ABOUT_CAPITAL, CONTINENT, a=a, b=b),
    ]


GENRES = {"profile": _profile, "travel": _travel, "essay": _essay, "quiz": _quiz, "letter": _letter,
          "five-things": _five, "conversation": _talk}  # fmt: skip
TITLES = {"profile": "{X}: a portrait", "travel": "Notes from a journey to {x}", "essay": "My essay about {x}",
          "quiz": "A quiz about {x}", "letter": "A letter from {x}", "five-things": "Five things to know about {x}",
          "conversation": "A talk about {x}", "comparison": "{X} and {z}"}  # fmt: skip
OPEN_COMPARE = (
    "What do {x} and {z} have in common, and where do they differ?", "Let us put {x} beside {z}.",
    "Two countries on one page: {x} and {z}.", "Some people mix up {x} and {z}, so here they are side by side.",
)  # fmt: skip


def pages(countries: list[dict], rng: random.Random) -> list[Page]:
    """Seven pages about each country and one that compares it with the next in a shuffled round."""
    result = []
    for country in countries:
        facts = [(country["the_name"], "capital"), (country["the_name"], "continent")]
        borders = NEIGHBOURS if country["neighbours"] else ISLAND
        for genre, plan in GENRES.items():
            words = _words(country, countries, rng)
            paragraphs = write(lambda t, plan=plan, borders=borders: plan(t, borders), rng, words, PADDING)
            url = f"{HOST}/{slug(country['name'])}/{genre}"
            title = TITLES[genre].format(**words)
            result.append(Page(url, title, [("p", text) for text in paragraphs], "almanac", facts=facts))
    order = rng.sample(countries, len(countries))
    return result + [_comparison(*pair, countries, rng) for pair in zip(order, order[1:] + order[:1], strict=True)]


def _comparison(one: dict, two: dict, countries: list[dict], rng: random.Random) -> Page:
    words, others = _words(one, [two], rng), _words(two, countries, rng)
    size = "larger" if one["area"] > two["area"] else "smaller"

    def plan(t: Teller) -> list[str]:
        second = Teller(t.rng, others)
        second.used = t.used  # the two countries share one page, so they share its phrasings
        return [
            t.say(OPEN_COMPARE, z=two["the_name"]),
            t.say(CONTINENT, CAPITAL, POPULATION, SPEECH),
            second.say(CONTINENT, CAPITAL, POPULATION, SPEECH),
            f"{words['X']} is {size} than {others['x']}. {t.say(BOTH)} {second.say(BOTH)}",
        ]

    facts = [(c["the_name"], relation) for c in (one, two) for relation in ("capital", "continent")]
    url = f"{HOST}/compare/{slug(one['name'])}-and-{slug(two['name'])}"
    title = TITLES["comparison"].format(X=words["X"], z=two["the_name"])
    return Page(url, title, [("p", text) for text in write(plan, rng, words, PADDING)], "almanac", facts=facts)
