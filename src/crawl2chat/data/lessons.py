"""The schoolbook's lessons: everyday questions with their answers, and counting, spelling, comparing told in prose."""

import random
import zlib

from crawl2chat.data.pages import Page
from crawl2chat.data.schoolbook import HOST
from crawl2chat.data.stories import BOYS, FOODS, GIRLS
from crawl2chat.data.wording import Teller, upper, write

# one everyday matter a line: two ways to ask, two ways to answer
EVERYDAY = """
What do bees make?|What do we get from bees? = Bees make honey.|We get honey from bees.
What colour is grass?|Which colour does grass have? = Grass is green.|The colour of grass is green.
What do cows eat?|What is the food of cows? = Cows eat grass.|Grass is the food of cows.
Where do fish live?|What is the home of fish? = Fish live in water.|Water is the home of fish.
What falls from the clouds?|What comes down from dark clouds? = Rain falls from the clouds.|Dark clouds bring rain.
What is ice?|What is ice made of? = Ice is frozen water.|Ice is made of water that has frozen.
What do we use an umbrella for?|When do you need an umbrella? = An umbrella keeps us dry in the rain.|You need it when it rains.
How many days are in a week?|How many days does a week have? = Seven.|A week has seven days.
How many months are in a year?|How many months does a year have? = Twelve.|A year has twelve months.
How many legs does a spider have?|How many legs has a spider? = Eight.|A spider has eight legs.
How many legs does a dog have?|How many legs has a dog? = Four.|A dog has four legs.
How many wheels does a bicycle have?|How many wheels are on a bicycle? = Two.|A bicycle has two wheels.
How many hours are in a day?|How many hours does a day have? = A day has twenty-four hours.|There are twenty-four hours in a day.
Which season comes after winter?|What comes after winter? = Spring.|After winter comes spring.
Which season comes after summer?|What comes after summer? = Autumn.|After summer comes autumn.
Which day comes after Monday?|What day follows Monday? = Tuesday.|Tuesday follows Monday.
Which day comes before Friday?|What day is it before Friday? = Thursday.|The day before Friday is Thursday.
Which month comes after June?|What is the month after June? = July.|July comes after June.
Which is the first month of the year?|With which month does a year begin? = January.|A year begins with January.
What do we use our eyes for?|What do eyes do? = With our eyes we see.|Eyes let us see.
What do we use our ears for?|What do ears do? = With our ears we hear.|Ears let us hear.
What is bread made of?|What do you need for bread? = Bread is made of flour and water.|For bread you need flour, water and salt.
Who bakes bread?|Who makes the bread that we buy? = A baker bakes bread.|The baker makes it.
Who works in a school?|Whom do you meet in a school? = Teachers work in a school.|In a school you meet teachers and pupils.
Who helps us when we are ill?|To whom do we go when we are ill? = A doctor helps us.|We go to a doctor.
Where do books stand in a town?|Where can you borrow books? = You can borrow books in a library.|Many books stand in the library.
What does a clock show?|What do we read from a clock? = A clock shows the time.|From a clock we read the time.
What is the opposite of hot?|Which word means the opposite of hot? = Cold.|The opposite of hot is cold.
What is the opposite of big?|Which word means the opposite of big? = Small.|The opposite of big is small.
What is the opposite of early?|Which word means the opposite of early? = Late.|The opposite of early is late.
What is the opposite of open?|Which word means the opposite of open? = Closed.|The opposite of open is closed.
What is the opposite of up?|Which word is the opposite of up? = Down.|The opposite of up is down.
What is the opposite of day?|Which word means the opposite of day? = Night.|The opposite of day is night.
Where does the sun rise?|In which direction does the sun come up? = The sun rises in the east.|It comes up in the east.
Where does the sun set?|In which direction does the sun go down? = The sun sets in the west.|It goes down in the west.
What shines at night?|What can you see in the sky at night? = The moon and the stars shine at night.|At night we see the moon and the stars.
What do plants need to grow?|What does a plant need? = Plants need water, light and air.|A plant needs light, air and water.
What do birds have on their bodies?|What covers a bird? = Birds have feathers.|A bird is covered with feathers.
What do hens lay?|What do we get from hens? = Hens lay eggs.|We get eggs from hens.
What do sheep give us?|What do we get from sheep? = Sheep give us wool.|From sheep we get wool.
What is a young dog called?|What do we call a young dog? = A young dog is called a puppy.|We call it a puppy.
What is a young cat called?|What do we call a young cat? = A young cat is called a kitten.|We call it a kitten.
What do we write with?|What do you need to write a letter? = We write with a pen or a pencil.|For a letter you need paper and a pen.
What do we cut paper with?|Which tool cuts paper? = We cut paper with scissors.|Scissors cut paper.
What holds a wall together?|What is a wall made of? = A wall is made of bricks or stones.|Bricks or stones make a wall.
What is a window made of?|What do we look through in a window? = A window is made of glass.|We look through the glass.
What is a table made of?|Which material is good for a table? = Most tables are made of wood.|Wood is good for a table.
Why do we wash our hands?|Why should you wash your hands? = We wash our hands to get rid of dirt.|Clean hands keep us healthy.
Why do we sleep?|Why does the body need sleep? = Sleep gives us rest.|The body rests when we sleep.
Why do we wear coats in winter?|What is a coat good for? = A coat keeps us warm.|We wear coats because it is cold in winter.
Where do ships sail?|On what do ships travel? = Ships sail on the sea.|They travel on water.
Where do trains stop?|Where do you wait for a train? = Trains stop at a station.|You wait for a train at the station.
Where do planes land?|Where do you go to take a plane? = Planes land at an airport.|To take a plane you go to the airport.
What does a farmer do?|What is the work of a farmer? = A farmer grows plants and keeps animals.|A farmer works in the fields.
What does a gardener do?|What is the work of a gardener? = A gardener takes care of plants.|A gardener waters the flowers.
What does a painter need?|What does a painter work with? = A painter needs paint and a brush.|A painter works with colours.
What does a tailor make?|What do we get from a tailor? = A tailor makes clothes.|From a tailor we get coats and shirts.
What is a desert?|What is the land called where it hardly rains? = A desert is dry land where it hardly rains.|It is called a desert.
What is an island?|What do we call land with water all around it? = An island is land with water all around it.|We call it an island.
What is a mountain?|What do we call a very high hill? = A mountain is a very high hill.|A very high hill is called a mountain.
What is a river?|What flows from the hills to the sea? = A river is water that flows to the sea.|A river flows from the hills to the sea.
What melts in the sun?|What happens to snow in the sun? = Snow melts in the sun.|It turns into water.
What colour is the sky on a clear day?|Which colour has a clear sky? = Blue.|On a clear day the sky is blue.
What colour is a ripe banana?|Which colour has a ripe banana? = Yellow.|A ripe banana is yellow.
What colour is snow?|Which colour does snow have? = White.|Snow is white.
Which animal gives us milk?|Where does milk come from? = The cow gives us milk.|Milk comes from cows.
Which animal says meow?|What sound does a cat make? = The cat says meow.|A cat makes the sound meow.
Which animal has a very long neck?|Which animal can eat leaves from high trees? = The giraffe has a very long neck.|That is the giraffe.
Which is the largest animal on land?|Which land animal is the largest? = The elephant is the largest animal on land.|It is the elephant.
What do you drink when you are thirsty?|What is good against thirst? = You drink water.|Water is good against thirst.
What is soup eaten with?|With what do you eat soup? = Soup is eaten with a spoon.|You eat it with a spoon.
Where do we keep milk cold?|Where does food stay cold? = We keep milk in the fridge.|Food stays cold in the fridge.
What do we need a key for?|What does a key do? = A key opens a door.|With a key we open a lock.
What is a calendar for?|What do we read from a calendar? = A calendar shows the days and months.|From it we read the date.
What is a map for?|What does a map show? = A map shows where places are.|With a map you do not lose your way.
What do we say when we meet?|How do people greet each other? = We say hello.|People say hello or good morning.
What do we say when somebody helps us?|What is the polite answer to a gift? = We say thank you.|The polite answer is thank you.
What do we say when we are sorry?|What do you say after a mistake? = We say that we are sorry.|After a mistake you say sorry.
What should you do when you cross a street?|How do you cross a street? = Look left and right before you go.|You wait until no car is coming.
What should you do with a letter?|How does a letter reach a friend? = Put a stamp on it and post it.|The post carries it to your friend.
""".strip()  # noqa: E501
OPEN_EVERYDAY = (
    "These questions are about everyday things.", "Here are questions that a child might ask.",
    "Ask and answer in turns.",
    "Everybody should know these things.", "Questions and answers for the first year of school.",
    "Let us ask about the world.",
)  # fmt: skip
REMARK = (
    "Remember this well.", "Look around you, and you will see that it is so.", "Say it once more in your own words.",
    "Even small children know it.", "You can see it every day.", "Draw a picture of it in your notebook.",
    "Ask your parents, and they will tell you the same.", "That is an easy question.",
    "This one needs a moment of thought.",
)  # fmt: skip

WORDS = """apple table house river stone bread window garden flower letter school summer winter yellow orange
    purple silver animal rabbit donkey turtle squirrel mother father sister brother friend morning
    evening kitchen pencil paper candle bottle basket bucket hammer ladder button pocket market
    village street bridge island forest mountain valley ocean thunder shadow mirror carpet pillow
    blanket guitar trumpet violin drummer teacher farmer sailor doctor painter cherry banana butter
    cheese pepper sugar coffee dinner supper saddle castle tunnel engine rocket planet comet copper
    iron tin zinc paint brush clock chair couch spoon plate glass onion carrot potato tomato lemon
    melon peach grape""".split()
OPEN_SPELL = (
    "Let us spell the word {w}.", "How is the word {w} written?", "Today we write the word {w}.",
    "Many children ask how to write {w}.", "The word of the day is {w}.",
)  # fmt: skip
SPELL = (
    "It begins with the letter {first}, then comes {middle}, and it ends with {last}.",
    "The first letter is {first}, then we write {middle}, and the last letter is {last}.",
    "Write {first} at the start, then {middle}, and put {last} at the end.",
)  # fmt: skip
LENGTH = (
    "So the word {w} has {n} letters.", "If you count them, the word has {n} letters in all.",
    "That makes {n} letters from the first to the last.", "Together there are {n} letters in {w}.",
)  # fmt: skip
VOWELS = (
    "For its vowels the word {w} has {v}.", "You can hear {v} when you say {w} slowly.",
    "When you sing the word {w}, you sing {v}.",
)  # fmt: skip
SPELL_MORE = (
    "Say the word slowly and listen to every sound.", "Write it three times and read it aloud.",
    "Cover the word with your hand and try to write it again.", "A word is only a row of letters, one after another.",
    "When you are not sure, look at the page again.", "Long words are easy when you take one letter at a time.",
)  # fmt: skip
COUNTS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty""".split()
GOODS = "apples pears plums nuts eggs coins books cards shells stones buttons candles cups plates keys stamps".split()
OPEN_COUNT = (
    "{a} has {m} {g} and gets {n} more.", "There are {m} {g} on the table, and {a} puts {n} more beside them.",
    "In the bag of {a} are {m} {g}. Then {n} more go into it.",
    "{a} counts {m} {g} in the morning and {n} in the evening.",
)  # fmt: skip
ASK_COUNT = ("How many {g} are there now?", "How many {g} are there in all?", "How many {g} does that make?")
STEP_COUNT = (
    "Begin with {m} and count on: {steps}.", "We start at {m} and go on, one step for each: {steps}.",
    "After {m} come {steps}.", "Count from {m}: {steps}.",
)  # fmt: skip
ANSWER_COUNT = (
    "So there are {sum} {g}.", "The answer is {sum}.", "{Sum} {g} are there in all.", "That makes {sum} {g}.",
)  # fmt: skip
OPEN_MORE = (
    "{a} has {m} {g}, and {b} has {n}.", "In one box are {m} {g}, and in the other are {n}.",
    "{b} brings {n} {g}, but {a} brings {m}.", "On the left lie {m} {g}, on the right lie {n}.",
)  # fmt: skip
ASK_MORE = ("Which number is larger?", "Where are there more {g}?", "Which of the two is more?", "Who has more?")
STEP_MORE = (
    "When we count, {small} comes before {large}.", "You reach {small} first and {large} later when you count.",
    "Take one from each side again and again, and the side with {small} is empty first.",
)  # fmt: skip
ANSWER_MORE = (
    "So {large} is larger than {small}.", "{Large} is more than {small}.", "The larger number is {large}.",
    "So {large} {g} are more than {small} {g}.",
)  # fmt: skip
MORE = (
    "With a little practice this becomes easy.", "You may use your fingers if it helps.",
    "Draw a dot for each one of them.",
    "Check it once more before you go on.", "Then do the next one alone.",
    "It does not matter whether they are {f} or {g}.",
)  # fmt: skip


def everyday(count: int, rng: random.Random) -> list[Page]:
    """Pages of six or seven everyday questions, each with its answer."""
    items = [[side.split("|") for side in line.split(" = ")] for line in EVERYDAY.splitlines()]

    def plan(t: Teller) -> list[str]:
        pairs = [f"{t.rng.choice(asked)} {t.rng.choice(answered)}" for asked, answered in t.rng.sample(items, 8)]
        return [
            t.say(OPEN_EVERYDAY),
            *(f"{a} {t.say(REMARK)} {b}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)),
        ]

    return _pages("everyday", "Everyday questions", plan, count, rng)


def _lettered(word: str) -> dict[str, str]:
    middle = ", then ".join(word[1:-1])
    vowels = sorted({letter for letter in word if letter in "aeiou"}, key=word.index)
    named = " and ".join(vowels)
    return {"w": word, "first": word[0], "middle": middle, "last": word[-1], "n": COUNTS[len(word)], "v": named}


def spelling(count: int, rng: random.Random) -> list[Page]:
    """Words spelled in sentences; no word that the spelling task keeps for its test."""
    words = [word for word in WORDS if zlib.crc32(word.encode()) % 8]

    def plan(t: Teller) -> list[str]:
        return [
            t.say(OPEN_SPELL, SPELL, LENGTH, VOWELS, SPELL_MORE, **_lettered(word)) for word in t.rng.sample(words, 4)
        ]

    return _pages("spelling", "How to write it", plan, count, rng)


def counting(count: int, rng: random.Random) -> list[Page]:
    """Small sums and comparisons of things, in words, each with its steps."""

    def plan(t: Teller) -> list[str]:
        paragraphs = []
        for kind in t.rng.sample(("sum", "sum", "more", "more"), 4):
            g, (a, b) = t.rng.choice(GOODS), t.rng.sample(GIRLS + BOYS, 2)
            m, n = t.rng.randint(2, 12), t.rng.randint(2, 6)
            if kind == "more":
                n = t.rng.choice([i for i in range(2, 20) if i != m])
            words = {"a": a, "b": b, "g": g, "m": COUNTS[m], "n": COUNTS[n], "f": t.rng.choice(FOODS)}
            if kind == "sum":
                steps, total = [COUNTS[i] for i in range(m + 1, m + n + 1)], COUNTS[m + n]
                words |= {"steps": ", ".join(steps), "sum": total, "Sum": upper(total)}
                paragraphs.append(t.say(OPEN_COUNT, ASK_COUNT, STEP_COUNT, ANSWER_COUNT, MORE, **words))
            else:
                small, large = COUNTS[min(m, n)], COUNTS[max(m, n)]
                words |= {"small": small, "large": large, "Large": upper(large)}
                paragraphs.append(t.say(OPEN_MORE, ASK_MORE, STEP_MORE, ANSWER_MORE, MORE, **words))
        return paragraphs

    return _pages("counting", "Counting and comparing", plan, count, rng)


def _pages(kind: str, title: str, plan, count: int, rng: random.Random) -> list[Page]:
    result = []
    for number in range(count):
        blocks = [("p", text) for text in write(plan, rng, {})]
        result.append(Page(f"{HOST}/{kind}/{number:04d}", f"{title} ({number + 1})", blocks, kind))
    return result
