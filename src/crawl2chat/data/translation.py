"""A small dictionary: English words in French and in Spanish, and pages that list them.

Every list is laid out in its own way, so that a layout which stands in no list can be understood from examples alone.
One word in five stands in no list.
"""

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from crawl2chat.stage import write_text

LANGUAGES = ("French", "Spanish")
# English, French, Spanish: words that cannot be guessed from each other's letters
WORDS = """
    apple pomme manzana, bear ours oso, bed lit cama, bell cloche campana, bird oiseau pájaro, boat bateau barco, book
    livre libro, bread pain pan, bridge pont puente, brother frère hermano, butter beurre mantequilla, cat chat gato,
    chair chaise silla, cheese fromage queso, church église iglesia, city ville ciudad, cloud nuage nube, cow vache
    vaca, cup tasse taza, day jour día, dog chien perro, door porte puerta, ear oreille oreja, egg œuf huevo, eye œil
    ojo, father père padre, finger doigt dedo, fire feu fuego, fish poisson pez, fox renard zorro, friend ami amigo,
    frog grenouille rana, girl fille niña, grass herbe hierba, green vert verde, hair cheveux pelo, hammer marteau
    martillo, hand main mano, hat chapeau sombrero, head tête cabeza, heart cœur corazón, horse cheval caballo, house
    maison casa, ice glace hielo, key clé llave, king roi rey, kitchen cuisine cocina, knife couteau cuchillo, leg
    jambe pierna, milk lait leche, money argent dinero, moon lune luna, mother mère madre, mouse souris ratón, mouth
    bouche boca, night nuit noche, owl chouette búho, pig cochon cerdo, queen reine reina, rabbit lapin conejo, rain
    pluie lluvia, red rouge rojo, river rivière río, roof toit techo, salt sel sal, school école escuela, sea mer mar,
    sheep mouton oveja, ship navire buque, shirt chemise camisa, shoe chaussure zapato, sister sœur hermana, sky ciel
    cielo, snow neige nieve, soap savon jabón, song chanson canción, spoon cuillère cuchara, star étoile estrella,
    stone pierre piedra, street rue calle, sugar sucre azúcar, sun soleil sol, tooth dent diente, tree arbre árbol,
    wall mur pared, water eau agua, window fenêtre ventana, winter hiver invierno, wolf loup lobo, woman femme mujer,
    wood bois madera, word mot palabra, year année año, yellow jaune amarillo
"""
# what stands before a word (with a space, so that the word is the same token everywhere) and between the two
STARTS = ("- ", "* ", "+ ", ". ", "# ", "English ", "English: ", "word ")
SEPARATORS = (" - ", ": ", " = ", ", ", " / ", " | ", " – ", " -> ", " ~ ", " * ", " :: ", " . ", " + ", " # ", " is ")
SENTENCES = (
    "The {L} word for {e} is {t}.", "In {L}, {e} is {t}.", "How do you say {e} in {L}? It is {t}.",
    "What is {e} in {L}? It is {t}.", "Say {t} for {e}.", "We say {e}, and they say {t}.",
    "The word {e} becomes {t}.", "A {L} child says {t} for {e}.",
)  # fmt: skip
TITLES = (
    "Words in {L}", "English and {L}", "A {L} word list", "{L} vocabulary", "From an English and {L} dictionary",
    "My {L} notebook", "{L} words for the week", "A page of the dictionary: {L}",
)  # fmt: skip


def pairs() -> list[dict]:
    """A row {"english", "french", "spanish", "listed"} for every word; `listed` words stand in the lists."""
    rows = [entry.split() for entry in WORDS.replace("\n", " ").split(",")]
    return [
        {"english": english, "french": french, "spanish": spanish, "listed": zlib.crc32(english.encode()) % 5 != 0}
        for english, french, spanish in rows
    ]


def write_pairs(path: Path) -> None:
    """translation.jsonl: the rows of `pairs`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs()))


def word_list(rng: random.Random, rows: Sequence[dict]) -> str:
    """A list of twelve words in one language and one layout; half of the lists have a title."""
    language = rng.choice(LANGUAGES)
    start = rng.choice(STARTS)
    between = f"{language} " if start.startswith("English") and rng.random() < 0.5 else ""
    layout = start + "{e}" + rng.choice(SEPARATORS) + between + "{t}"
    if rng.random() < 0.2:
        layout = rng.choice(SENTENCES)
    end = rng.choice(("\n", "\n", "\n", "\n\n", "; "))
    chosen = rng.sample(rows, 12)
    lines = [layout.format(e=row["english"], t=row[language.lower()], L=language) for row in chosen]
    title = rng.choice(TITLES).format(L=language) + "\n" if rng.random() < 0.5 else ""
    return title + end.join(lines)


def word_lists(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(f"translation {seed}")
    rows = [row for row in pairs() if row["listed"]]
    for _ in range(count):
        yield word_list(rng, rows)
