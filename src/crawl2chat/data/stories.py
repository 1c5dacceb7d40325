"""The storybook: short simple stories in plain words, made from plots whose every sentence has several wordings."""

import random

from crawl2chat.data.pages import Page
from crawl2chat.data.wording import Teller, an, write

HOST = "https://storybook.example.org"

GIRLS = """Ada Anna Bella Clara Daisy Ella Emma Fatima Greta Hana Ida Jana Julia Kim Lea Lily Lina Maya Mira Nina
    Nora Olivia Pia Rita Ruth Sara Sofia Tilda Vera Wanda Yara Zoe""".split()
BOYS = """Adam Ali Anton Bruno Dan Emil Felix Georg Hans Henry Ivan Jack Jan Karl Leo Luca Mark Max Milo Nico Omar
    Oscar Otto Paul Peter Ravi Sam Theo Tim Tom Victor Will""".split()
ANIMALS = "cat dog rabbit fox owl duck horse goat mouse bear frog hen squirrel donkey turtle crow".split()
COLOURS = "red blue green yellow white black brown grey orange purple".split()
THINGS = "kite ball drum lamp book boat hat box bell basket key cup coat clock map ring spoon umbrella".split()
PLACES = ("garden", "forest", "park", "village", "farm", "town", "valley", "market", "harbour", "school")
FOODS = "bread cake soup apples honey cheese pears rice pie berries nuts plums".split()
SIZES = ("small", "big", "little", "tiny", "large", "old", "new", "fine")
TRADES = ("baker", "farmer", "teacher", "tailor", "gardener", "sailor", "miller", "painter", "doctor", "postman")

# {a} the hero ({she}, {her}), {b} a friend, {animal}, {colour}, {thing}, {place}, {food}, {size}, {trade}
OPEN = (
    "Once upon a time there was a child named {a}.", "There once was a child called {a} who lived near the {place}.",
    "In a small house by the {place} lived {a}.", "{a} lived with {her} family at the edge of the {place}.",
    "One morning {a} woke up early.", "It was a sunny day, and {a} wanted to play.", "{a} had a friend named {b}.",
    "Long ago, near a quiet {place}, there lived a child named {a}.",
    "On a cold morning {a} put on {her} {colour} coat.",
)  # fmt: skip
HAPPY_END = (
    "{a} went home with a smile.", "That night {a} slept very well.",
    "From that day on, {a} and {b} were best friends.",
    "They laughed and ate {food} together.", "And everyone in the {place} was happy.", "It had been a good day.",
    "{a} told the story to {her} mother, and {her} mother gave {a} a hug.", "They all lived in peace after that.",
    "{a} never forgot that day.", "Then the sun went down, and it was time for bed.",
)  # fmt: skip
LESSON = (
    "{a} learned that it is good to share.", "{a} learned that it is fine to ask for help.",
    "{a} now knew that a kind word can do a lot.", "So {a} saw that it helps to be patient.",
    "Now {a} knew that it is best to tell the truth.", "{a} understood that small friends can be great friends.",
    "From then on {a} always looked twice.", "{a} thought that a friend is better than {a_thing}.",
)  # fmt: skip
SCENE = (
    "The sky was {colour2} that day, and a soft wind went through the {place}.", "In the {place} everyone was busy.",
    "The {trade} waved from across the street.", "Somewhere {an_animal2} made a noise.",
    "It smelled of fresh {food2}.",
    "{b} was humming a song.", "An old woman sat in the sun and watched.", "The path was long, but the day was young.",
    "There were {colour2} flowers on both sides of the road.", "{a} took a deep breath.",
    "{a} and {b} looked at each other.",
    "{A_size} cloud came over the hill.", "Nobody said a word for a while.", "{b} had never seen such a thing.",
    "In the distance a bell rang {count} times.", "The grass was still wet from the night.",
)  # fmt: skip
LOST = (
    (
        "{a} had {a_colour} {thing}.", "Of all {her} things, {a} loved {her} {colour} {thing} most.",
        "For {her} birthday {a} had been given {a_colour} {thing}.",
        "{a} owned {a_size} {thing}, and it was {colour}.",
    ),
    (
        "One day the {thing} was gone.", "But in the morning the {thing} was not there.",
        "After lunch {a} could not see the {thing} anywhere.", "Then, one windy day, the {thing} was lost.",
    ),
    (
        "{a} looked under the bed and behind the door.", "{a} looked in every room of the house.",
        "{a} looked in the kitchen, but on the table there lay nothing but {food}.", "{a} searched the whole {place}.",
    ),
    (
        "{a} was very sad and sat down on the steps.", "{a} began to cry.", "A tear ran down the face of {a}.",
        "{a} did not want to eat or play.",
    ),
    (
        "{b} came by and asked what was wrong.", "Just then {b} walked past with {an_animal}.",
        "{b} heard {a} and came to help.", "{b} said, do not cry, we will look together.",
    ),
    (
        "They followed the path to the {place}.", "They asked the {trade}, but the {trade} shook his head.",
        "Together they walked all around the {place}.", "They asked everyone they met about the {thing}.",
    ),
    (
        "Then they saw {a_size} {animal} near a tree.", "Behind a wall they heard {an_animal}.",
        "At last {b} pointed at {an_animal} in the grass.", "Under a bench sat {a_size} {animal}.",
    ),
    (
        "The {animal} was asleep on the {colour} {thing}.", "Next to the {animal} lay the {thing}.",
        "The {animal} had taken the {thing} to make a bed.", "The {animal} was playing with the {colour} {thing}.",
    ),
    (
        "{a} gave the {animal} some {food} and took the {thing} back.",
        "The {animal} gave it back and got some {food}.",
        "{a} laughed and picked up the {thing}.", "{b} lifted the {animal}, and {a} took the {thing}.",
    ),
)  # fmt: skip
HELP = (
    (
        "On the way to the {place}, {a} heard a small voice.", "Near the {place}, {a} heard somebody call for help.",
        "While {a} was walking to the {place}, there was a cry.",
        "{a} was picking berries when a sound came from the {place}.",
    ),
    (
        "It was {an_animal} whose foot was stuck.", "{a_animal} had fallen into a hole.",
        "{a_animal} sat high in a tree and could not come down.", "There was {an_animal}, all alone and afraid.",
    ),
    (
        "Please help me, said the {animal}.", "I have been here all night, said the {animal}.",
        "Will you help me, asked the {animal}, or will you go away?", "I am hungry and cold, said the {animal}.",
    ),
    (
        "{a} was a little afraid, but {she} wanted to help.", "{a} thought about what to do.",
        "{a} looked around for a long stick.", "Of course I will help you, said {a}.",
    ),
    (
        "{a} ran to get {b}.", "First {a} tried alone, but it did not work.", "{a} called {b}, who was strong.",
        "{a} pulled and pulled until {her} hands hurt.",
    ),
    (
        "{b} brought a rope and {a_colour} {thing}.", "With {a_colour} {thing} they made a kind of bridge.",
        "{b} held the {thing}, and {a} held the {animal}.",
        "Together they lifted the {animal} with {a_colour} {thing}.",
    ),
    (
        "In the end the {animal} was free.", "One more pull, and the {animal} was safe.",
        "Slowly, very slowly, the {animal} came out.", "The {animal} jumped into the arms of {a}.",
    ),
    (
        "Thank you, said the {animal}, I will not forget this.", "The {animal} thanked {a} and {b} many times.",
        "The {animal} danced with joy.", "The {animal} gave {a} a {size} stone as a gift.",
    ),
    (
        "Some days later {a} lost {her} way in the {place}.", "Later that year there was much snow, and {a} was lost.",
        "The next week {a} came to a river and could not cross.",
        "Not long after, {a} could not get home in the dark.",
    ),
    (
        "Then the {animal} came and showed {a} the way.", "Who came to help? It was the same {animal}.",
        "The {animal} heard {a} and led {him} home.", "The {animal} saw {a} and walked in front of {him} to the door.",
    ),
)  # fmt: skip
MARKET = (
    (
        "The mother of {a} gave {him} {count} coins for {food}.", "{a} had {count} coins and wanted to buy {food}.",
        "{a} was sent to the {trade} with {count} coins.",
        "With {count} coins in {her} pocket, {a} went out to buy {food}.",
    ),
    (
        "The way led past the old bridge.", "On the way {a} sang a song about {an_animal}.",
        "The road to the shop was long and dusty.", "{a} counted the coins three times on the way.",
    ),
    (
        "In the street {a} met {b}, who looked sad.", "At the corner stood {b} with {an_animal}.",
        "By the well sat {b}, and {b} was crying.", "Halfway there {a} saw {b} on a bench.",
    ),
    (
        "I have lost my {thing}, said {b}.", "My {animal} is hungry, and I have nothing for it, said {b}.",
        "I broke the {thing} of my brother, said {b}.", "I wanted to buy {a_thing}, but I have no coins, said {b}.",
    ),
    (
        "{a} looked at {her} coins and thought.", "{a} did not know what to say at first.",
        "It is not easy to give away a coin, thought {a}.", "{a} felt sorry for {b}.",
    ),
    (
        "Then {a} gave {b} one of the coins.", "Take two of my coins, said {a}.",
        "Come with me, said {a}, we will ask the {trade}.", "We can share, said {a}.",
    ),
    (
        "They went to the {trade} together.", "The shop of the {trade} was full of {food}.",
        "The {trade} stood at the door in {a_colour} apron.", "The {trade} had seen everything from the window.",
    ),
    (
        "What a kind child, said the {trade}.", "The {trade} smiled and gave them more {food} than they had paid for.",
        "You may have the {food} and keep your coins, said the {trade}.",
        "The {trade} put a {size} extra piece into the bag.",
    ),
    (
        "On the way home the two of them ate some of the {food}.",
        "{b} carried the bag, and {a} carried the {animal}.",
        "They walked home hand in hand.", "The bag was heavy, so they took turns.",
    ),
)  # fmt: skip
CONTEST = (
    (
        "Every year there was a contest in the {place}.", "The {trade} of the {place} called all children together.",
        "A paper on the wall said that there would be a race.", "Who can build the best {thing}? asked the {trade}.",
    ),
    (
        "{a} wanted to win more than anything.", "{a} said that {she} would try.",
        "All the children were excited, and so was {a}.",
        "{b} said, I will win, and {a} said, we will see.",
    ),
    (
        "For {count} days {a} worked hard.", "{a} practised each day before breakfast.",
        "Every evening {a} worked on {a_colour} {thing}.", "{a} asked {her} grandfather for advice.",
    ),
    (
        "{b} did not practise and slept late.", "{b} had the best tools, but not much time.",
        "{b} worked just as hard.", "{b} painted a {thing} in {colour}.",
    ),
    (
        "Then the great day came.", "On the day of the contest the sun was shining.",
        "It rained a little, but nobody went home.",
        "All the people came, and even {an_animal} sat on the fence.",
    ),
    (
        "In the middle of it all, {b} fell down.", "Suddenly the {thing} of {b} broke.",
        "Then {b} made a mistake and stopped.", "{b} had forgotten {her2} bag at home.",
    ),
    (
        "{a} could have gone on alone, but {she} stopped.", "{a} turned around and helped {b}.",
        "Take my {thing}, said {a}.", "{a} ran back and held out a hand.",
    ),
    (
        "They came in last, but everyone clapped.", "Neither of them won, and neither of them minded.",
        "In the end another child won the prize.", "The prize went to the little sister of the {trade}.",
    ),
    (
        "The {trade} gave both of them some {food}.", "You two have won a friend, said the {trade}.",
        "For kind hearts there is a prize too, said the {trade}.", "The {trade} hung a ribbon on both of them.",
    ),
)  # fmt: skip
NIGHT = (
    (
        "One night {a} could not sleep.", "It was late, but {a} was still awake.",
        "The moon shone into the room of {a}.",
        "In the middle of the night {a} heard a noise.",
    ),
    (
        "Tap, tap, tap, it went at the window.", "Something moved behind the curtain.",
        "There was a soft sound under the bed.",
        "The noise came from the kitchen.",
    ),
    (
        "Is it a ghost, thought {a}.", "{a} pulled the blanket over {her} head.",
        "{a} held {her} breath and listened.",
        "{a} wanted to call {her} father, but no word came out.",
    ),
    (
        "Then {a} took the {thing} from the chair.", "At last {a} lit the lamp.",
        "{a} counted to {count} and stood up.",
        "Be brave, said {a} to {her} toy bear.",
    ),
    (
        "Step by step {a} went nearer.", "The floor was cold under {her} feet.",
        "The door made a long sound when it opened.",
        "{a} walked on tiptoe through the dark.",
    ),
    (
        "And what did {a} see? It was {a_size} {animal}!", "There sat {an_animal} and ate the {food}.",
        "In the light of the lamp stood {a_colour} {animal}.",
        "It was only {an_animal} that had come in from the rain.",
    ),
    (
        "Good evening, said the {animal}, I am sorry for the noise.", "The {animal} was more afraid than {a}.",
        "The {animal} looked at {a} with big eyes.", "The {animal} had {a_colour} ribbon around its neck.",
    ),
    (
        "{a} laughed and gave it some {food}.", "{a} dried the {animal} with a towel.",
        "They sat by the fire until it was warm.", "{a} made a bed for the {animal} in {a_colour} box.",
    ),
    (
        "In the morning {b} came and said, that is my {animal}!",
        "The next day they learned that the {animal} belonged to {b}.",
        "In the morning the {animal} was gone, but there was {a_thing} on the chair.",
        "When the sun rose, the {animal} was still asleep.",
    ),
)  # fmt: skip
PLANT = (
    (
        "{a} was given a seed by the {trade}.", "In an old coat {a} discovered {count} seeds.",
        "The grandmother of {a} had kept a seed for many years.", "One spring day {a} bought some seeds.",
    ),
    (
        "{a} dug a hole in the {place} and put the seed into it.", "{a} filled a pot with earth.",
        "{b} showed {a} how deep a seed must lie.", "Behind the house was a sunny spot, and there {a} put it.",
    ),
    (
        "Every morning {a} gave it water.", "{a} sat beside it each day after school.",
        "{a} sang to it and told it stories.",
        "{a} carried water from the well in {a_colour} can.",
    ),
    (
        "After {count} days nothing had happened.", "A week went by, and there was no green to be seen.",
        "It will never grow, said {b}.", "{a} was tired of waiting.",
    ),
    (
        "You must be patient, said the {trade}.", "Good things need time, said the mother of {a}.",
        "Wait a little longer, said the {trade}.", "{a} did not give up.",
    ),
    (
        "Then there was a warm rain.", "In the night it rained, and in the morning the sun came out.",
        "One morning the earth had a small crack.", "At last the days grew warm.",
    ),
    (
        "A tiny green leaf looked out of the earth.", "{a} saw something green and shouted with joy.",
        "Come quickly, called {a}, it is growing!", "First came one leaf, and then another.",
    ),
    (
        "One day {an_animal} wanted to eat it.", "A strong wind bent it down.",
        "{a_animal} ran through the {place} and stepped near it.",
        "In the summer there was too little rain.",
    ),
    (
        "{a} and {b} built a fence of sticks.", "{a} tied it to {a_colour} stick.",
        "{b} brought a bucket of water, and then another.",
        "{a} put {a_colour} {thing} next to it to keep it safe.",
    ),
    (
        "In autumn it was taller than {a}.", "At the end of the summer it had {colour} flowers.",
        "The flowers were {colour}, and bees came to visit them.",
        "When the leaves turned yellow, there was fruit for everyone.",
    ),
)  # fmt: skip
PLOTS = {"lost": LOST, "help": HELP, "market": MARKET, "contest": CONTEST, "night": NIGHT, "seed": PLANT}
TITLES = (
    "{a} and the {animal}", "The {colour} {thing}", "{a} in the {place}", "{a}, {b} and the {thing}",
    "A story about {a}",
)  # fmt: skip
NUMBERS = "two three four five six seven eight nine ten twelve".split()


def hero(rng: random.Random) -> dict[str, str]:
    """A child's name with its pronouns: {"name", "she", "her" (possessive), "him"}."""
    girl = rng.random() < 0.5
    words = ("she", "her", "her") if girl else ("he", "his", "him")
    return dict(zip(("name", "she", "her", "him"), (rng.choice(GIRLS if girl else BOYS), *words), strict=True))


def _words(rng: random.Random) -> dict[str, str]:
    one, two = hero(rng), hero(rng)
    while two["name"] == one["name"]:
        two = hero(rng)
    animal, colour, thing, size = rng.choice(ANIMALS), rng.choice(COLOURS), rng.choice(THINGS), rng.choice(SIZES)
    return {
        "a": one["name"], "she": one["she"], "her": one["her"], "b": two["name"], "her2": two["her"], "animal": animal,
        "an_animal": an(animal), "a_animal": an(animal).capitalize(), "colour": colour, "a_colour": an(colour),
        "thing": thing, "a_thing": an(thing), "size": size, "a_size": an(size), "A_size": an(size).capitalize(),
        "place": rng.choice(PLACES),
        "colour2": rng.choice(COLOURS), "an_animal2": an(rng.choice(ANIMALS)), "food2": rng.choice(FOODS),
        "him": one["him"], "food": rng.choice(FOODS), "trade": rng.choice(TRADES), "count": rng.choice(NUMBERS),
    }  # fmt: skip


def _story(t: Teller, plot: tuple) -> list[str]:
    third = len(plot) // 3
    return [
        t.say(OPEN, SCENE, *plot[:third], SCENE),
        t.say(*plot[third : 2 * third], SCENE),
        t.say(*plot[2 * third :]),
        t.say(LESSON, HAPPY_END, HAPPY_END),
    ]


def pages(count: int, rng: random.Random) -> list[Page]:
    """`count` stories, the plots in turn."""
    result = []
    for number in range(count):
        name, plot = list(PLOTS.items())[number % len(PLOTS)]
        words = _words(rng)
        paragraphs = write(lambda t, plot=plot: _story(t, plot), rng, words)
        title = rng.choice(TITLES).format(**words)
        result.append(Page(f"{HOST}/{name}/{number:04d}", title, [("p", text) for text in paragraphs], "story"))
    return result
