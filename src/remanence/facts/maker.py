"""Synthetic facts, and the questions that ask for them.

A :class:`FactMaker` invents subjects ("Marla Quist", "the spare key", or the
first person), states facts about them in plain British English, changes those
facts, and asks for them again.  What can be said about whom is laid out in
:data:`RELATIONS`; everything random comes from the one generator the maker is
given, so the same seed always tells the same story.

There are two splits, ``"train"`` and ``"held_out"``.  They share the wordings,
the values of the closed kinds (colours, foods, cities ...), codes and birthdays,
but no name of a person, pet, boat, street, company or thing, no part of a
person's name and no location occurs in both.

The wordings are format strings: ``{s}`` is the subject's name, ``{v}`` the
value and ``{a_v}`` the value with its indefinite article.  They begin in lower
case where the first word is an ordinary one, so that they can follow a lead-in
such as "By the way,"; the first letter of the finished sentence is raised.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

UNKNOWN = "I don't know."
"""The answer to a question about something that was never stated."""

ACKNOWLEDGE = "Noted."
"""The reply to a statement."""

SPLITS = ("train", "held_out")
"""The names of the two disjoint worlds of names."""

_LEAD_IN_SHARE = 0.15
_SINGLE_NAME_SHARE = 0.3
_INVENTED_SIBLING_SHARE = 0.3
_WORD_SHARE = 0.35  # of names, or parts of names, that are any word
_PET_WORD_SHARE = 0.7  # the list of pet names is short
_NAMESAKE_SHARE = 0.3  # of persons in training that share a first name with somebody; of last names too
_MOST_TRIES = 20_000  # for a name that was not used yet, before giving up


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


# --- Names -------------------------------------------------------------------

_FEMALE = _words("""
    Marla Anna Ingrid Priya Yuki Fatima Chiara Beatriz Nadia Keiko Amina Greta
    Helena Isla Joanna Katya Leila Mirela Noor Odile Paloma Rosalind Saskia Tamara
    Ursula Valeria Wanda Ximena Yasmin Zofia Abigail Bronwen Camila Dorothy Elif
    Freya Gwen Hannah Imogen Jamila Karin Lucia Maeve Nkechi Orla Petra Rania
    Siobhan Thandi Una Vera Wilma Yolanda Zainab Agnes Brigid Celeste Daphne Esther
    Farida Gloria Hilda Irena Jocelyn Kirsten Lakshmi Magda Nomvula Oksana Pauline
    Ruth Simone Tatiana Uma Vivian Winifred Ayesha Zelda Adaeze Birgit
""")
_MALE = _words("""
    Oberlin Anders Bashir Carlos Dmitri Emeka Felix Gustavo Hassan Ivan Jorge Kenji
    Lars Mateus Nikolai Omar Pavel Quentin Rafael Stefan Tomasz Umberto Viktor
    Walter Xavier Yusuf Zoltan Alasdair Bogdan Cedric Declan Edmund Farouk Giorgio
    Hamish Idris Jakub Kwame Leopold Mohan Nathaniel Olaf Percival Rajesh Samir
    Tariq Ulrich Vikram Wesley Yannick Zubair Arthur Benedikt Callum Desmond Elias
    Fergus Gareth Henrik Ismail Julian Kofi Lorenzo Marek Niall Osvaldo Piotr Ravi
    Sergei Theodore Uri Vincent Wolfgang Yorick Zdenek Adebayo Bertrand Chidi
    Domenico Eamon
""")
_FIRST = _FEMALE + _MALE

_LAST = _words("""
    Quist Abernathy Achebe Adler Almeida Andersson Antonelli Arslan Ashworth Aziz
    Bajwa Balogun Banerjee Barros Bauer Beaumont Bergstrom Bianchi Blackwood
    Boateng Borg Brandt Brennan Bukowski Burgess Calloway Camara Cardoso Carmichael
    Castellanos Cavanagh Chaudhry Chen Choi Cisneros Clausen Conti Corrigan
    Crabtree Csonka Dahl Danso Darcy Delacroix Demir Desai Diallo Dimitrov Dlamini
    Donnelly Drummond Dubois Duarte Dvorak Eberhardt Eklund Ellingham Engstrom
    Erdogan Escobar Fairbairn Falk Farrell Fenwick Ferrante Figueroa Fitzgerald
    Fontaine Forsyth Friedrich Fujimoto Galloway Garrido Gebre Ghosh Gilchrist
    Goldstein Gonzaga Grzelak Gunnarsson Gupta Haddad Hallberg Hargreaves Hashimoto
    Hawthorne Hendricks Herrera Hoang Hoffmann Holloway Horvath Ibarra Ibrahim
    Ishikawa Ivanova Jablonski Jansen Jaramillo Jensen Joshi Kaminski Kapoor
    Karlsson Kaya Keller Khoury Kimura Kinsella Kowalczyk Krause Kruger Lachance
    Lambert Larsen Laurent Leclerc Lindqvist Lockhart Lombardi Macleod Madsen
    Mahmoud Malhotra Mancini Markovic Matsuda Mbeki McAllister Mendoza Mihailov
    Moreau Mukherjee Murakami Nakamura Navarro Ndiaye Neumann Nguyen Nielsen
    Novak Nwosu Obafemi Ochoa Okafor Olsen Onyango Ortega Ostrowski Pacheco Pappas
    Pereira Petrov Pettersson Pham Pinto Popescu Prasad Pritchard Quiroga Radcliffe
    Rahman Ramirez Rasmussen Reinhardt Rinaldi Rossi Rutherford Sandoval Santoro
    Sato Schaefer Sepulveda Shah Silveira Sinclair Sorensen Soto Stavros Sundaram
    Szabo Takahashi Tanaka Tembo Thorne Tremblay Trevelyan Uchida Underhill Vasquez
    Venter Volkov Wadsworth Weiss Whitlock Winterbourne Yamada Yilmaz Zapata
    Zielinski Zimmermann
""")

_PET_NAMES = _words("""
    Biscuit Pickle Socks Nutmeg Bramble Ziggy Waffles Muffin Tinker Mittens Rascal
    Bandit Cookie Domino Fizz Gizmo Hobbit Inky Jellybean Kipper Lulu Marble
    Noodle Oreo Pebble Quaver Rolo Scamp Toffee Widget Acorn Bubbles Chester
    Doodle Echo Flapjack Goblin Hopscotch Jinx Kiwi Loki Mopsy Nibbles Otto Patch
    Rusty Snowball Tango Twiglet Waldo Yoyo Zorro Bilbo Crumpet Dusty Fidget
    Gonzo Hiccup Jester Comet Moose Nacho Peanut Radish Smudge Truffle Whiskers
    Bingo Clover Dumpling Freckles Gadget Marmite Monty Panda Pumpkin Rocket Sprout
    Tigger Treacle Turbo Teddy Wombat Zeus
""")

_ONSETS = _words("b br c d dr f g gr h j k l m n p pr qu r s sh t th tr v w y z")
# Repeated entries are likelier.
_VOWELS = _words("a e i o u a e i o ae ei ia")
_CODAS = _words("k l n r s th m nd rn x sk lt ne")
_NO_CODA_SHARE = 0.35

# --- Open values: names of places, companies, boats, things ---------------------

_STREET_STEMS = _items("""
    Alder, Ash, Aspen, Beech, Birch, Bishop, Blackthorn, Bluebell, Bridge, Brook,
    Canal, Castle, Cedar, Chapel, Cherry Tree, Church, Cliff, College, Copper Beech,
    Cottage, Cross, Crown, Dairy, Dove, Eagle, Elm, Falcon, Farm, Fern, Ferry,
    Foundry, Fountain, Fox, Garden, Glebe, Grange, Gravel, Hawk, Heather, Heron,
    High, Holly, Ivy, Juniper, Kiln, King, Lake, Larch, Laurel, Lavender, Lime Tree,
    Linden, Lock, Long, Mallard, Manor, Maple, Market, Meadow, Mill, Mint, Nettle,
    North, Oak, Old Mill, Orchard, Park, Pine, Poplar, Primrose, Priory, Quarry,
    Queen, Raven, Rectory, River, Rowan, School, Spring, Station, Stone, Sycamore,
    Temple, Thistle, Tower, Vicarage, Walnut, Well, Willow, Windmill, Yew Tree
""")
_STREET_TYPES = _words("Lane Road Street Avenue Close Drive Way Terrace Crescent Row")

_COMPANY_STEMS = _items("""
    Halden, Northgate, Brisk, Moss, Amberley, Arrowhead, Ashdown, Beacon, Bellwether,
    Blue Door, Brightwater, Calder, Cobalt, Copperfield, Crestline, Dunmore,
    Eastway, Evergreen, Fairmile, Farrow, Fernhill, Firefly, Foxglove, Gable,
    Goldcrest, Greystone, Harbourside, Hartwell, Highfield, Ironbridge, Juno,
    Kestrel, Kingsway, Lantern, Larkfield, Lodestar, Longshore, Meridian, Millbrook,
    Nimbus, Oakline, Orbit, Paragon, Pennant, Pinnacle, Quayside, Redwood, Ridgeway,
    Saltmarsh, Silverline, Southbank, Sterling, Summit, Swift, Tidewater, Trident,
    Upland, Vantage, Wayfarer, Westmoor, Whitestone, Wren, Yarrow, Zenith
""")
_COMPANY_TRADES = _items("""
    Bakery, Optics, Logistics, Books, Press, Motors, Foods, Textiles, Pharmacy,
    Insurance, Engineering, Studios, Software, Ceramics, Dairies, Furniture, Travel,
    Shipping, Robotics, Energy, Tools, Brewery, Glass, Paper, Electronics, Theatre,
    Nurseries, Film, Timber, Instruments, Catering, Records, Plumbing, Print, Toys
""")

_BOAT_FIRST = _items("""
    Sea, Wandering, Silver, Golden, Morning, Evening, Midnight, Northern, Southern,
    Western, Eastern, Merry, Quiet, Restless, Lucky, Brave, Gentle, Wild, Salty,
    Happy, Lonely, Little, Flying, Dancing, Laughing, Sleeping, Singing, Drifting,
    Ocean, River, Storm, Winter, Summer, Autumn, Island, Crimson, Scarlet, Misty,
    Royal, Distant, Second, Bold, Swift, Gallant
""")
_BOAT_SECOND = _items("""
    Lark, Star, Gull, Petrel, Heron, Dolphin, Otter, Seal, Breeze, Wind, Tide, Wave,
    Spirit, Dream, Dancer, Rover, Rambler, Wanderer, Voyager, Pilgrim, Queen,
    Princess, Maiden, Arrow, Lantern, Light, Moon, Dawn, Horizon, Song, Whisper,
    Fortune, Promise, Chance, Swan, Kittiwake, Tern, Cormorant, Albatross, Mermaid
""")

_COLOUR_WORDS = _words("blue red green black white grey brown yellow purple orange pink cream")
_THING_QUALITIES = _words("""
    spare old new small large broken borrowed antique striped battered shiny
    second-hand heavy cheap expensive rusty scratched plain
""")
_THINGS = _items("""
    key, suitcase, tax folder, torch, umbrella, ladder, notebook, camera, tape measure,
    screwdriver, hammer, sewing kit, first-aid kit, passport cover, wallet, purse,
    backpack, handbag, briefcase, phone charger, laptop, keyboard, headset, radio,
    alarm clock, wristwatch, necklace, bracelet, brooch, scarf, hat, raincoat,
    jumper, belt, tie, walking stick, tent, sleeping bag, picnic blanket, water bottle,
    flask, teapot, saucepan, frying pan, bread knife, corkscrew, tin opener, whisk,
    rolling pin, cake stand, cookbook, photo album, diary, atlas, dictionary, sketchbook,
    paintbrush, stapler, calculator, hole punch, letter opener, ruler, magnifying glass,
    pencil case, bank card, library card, chess set, jigsaw, football, tennis racket,
    bicycle pump, cycle helmet, padlock, spanner, drill, saw, paint roller, trowel,
    watering can, hosepipe, bird feeder, dog lead, cat carrier, extension lead,
    battery charger, memory stick, hard drive, printer cable, microphone, telescope,
    compass, kite, yoga mat, dumbbell, iron, hairdryer, mirror, candle holder,
    picture frame, music stand, metronome, guitar case, sledge, toolbelt
""")

_ROOMS = _words("kitchen hall bedroom study office bathroom attic cellar dining-room playroom")
_LOCATIONS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    # (prepositions, qualities, places): "in" + "the top" + "drawer"
    (
        ("in",),
        _words("top bottom middle left-hand right-hand second third"),
        _words("drawer cupboard locker pigeonhole compartment"),
    ),
    (
        ("in", "behind", "beside", "on top of"),
        _ROOMS,
        _words("cupboard cabinet bookcase wardrobe dresser chest"),
    ),
    (
        ("in", "under", "behind", "beside", "next to"),
        _COLOUR_WORDS + _words("wooden metal plastic big small round old"),
        _words("pot flowerpot bucket box basket hamper tin jar crate bowl barrel tub trunk"),
    ),
    (
        ("under", "behind", "beside", "near", "next to"),
        _ROOMS + _COLOUR_WORDS,
        _words("table sofa armchair bench stool bookcase"),
    ),
    (
        ("on", "under"),
        _ROOMS + _COLOUR_WORDS,
        _words("shelf desk worktop windowsill chair"),
    ),
    (
        ("behind", "beside", "near", "next to"),
        _words("garden old new wooden tall small back front"),
        _words("shed gate fence greenhouse wall hedge garage"),
    ),
)

# --- Closed values -------------------------------------------------------------

_COLOURS = _items("""
    teal, crimson, navy, turquoise, lavender, maroon, olive, magenta, amber, indigo,
    scarlet, beige, violet, emerald, mustard, coral, burgundy, cyan, ivory, lilac,
    mauve, ochre, peach, plum, rust, sage, salmon pink, sapphire, silver, gold, sepia,
    tan, aquamarine, charcoal, cobalt blue, mint green, pale yellow, bright orange,
    sky blue, jet black, dark green, cherry red
""")
_FOODS = _items("""
    lasagne, paella, risotto, ramen, sushi, goulash, moussaka, couscous, ratatouille,
    pizza, porridge, chilli, spaghetti, ravioli, gnocchi, tofu, smoked salmon, trout,
    lobster, haggis, shepherd's pie, fish pie, apple pie, roast chicken, roast lamb,
    cheesecake, gingerbread, carrot cake, rhubarb crumble, trifle, hummus, falafel,
    tabbouleh, biryani, dal, naan bread, pad thai, pho, kimchi, bibimbap, tempura,
    macaroni cheese, onion soup, tomato soup, lentil soup, borscht, fondue, raclette,
    schnitzel, sauerkraut, polenta, minestrone, tiramisu, baklava, halva, ceviche,
    guacamole, cornbread, gumbo, jambalaya, beef stew, toad in the hole, black pudding,
    bread pudding, custard, marzipan, fudge, liquorice, popcorn, garlic bread, quiche,
    fried rice
""")
_DRINKS = _items("""
    green tea, black coffee, cocoa, lemonade, ginger beer, apple juice, orange juice,
    tomato juice, sparkling water, peppermint tea, camomile tea, iced tea, iced coffee,
    espresso, cappuccino, cider, stout, pale ale, red wine, white wine, sherry, port,
    whisky, gin and tonic, rum punch, brandy, vodka, champagne, prosecco, buttermilk,
    oat milk, almond milk, coconut water, elderflower cordial, cranberry juice, root beer,
    cola, tonic water, sake, mulled wine, rooibos tea, hot chocolate
""")
_CITIES = _items("""
    Lisbon, Oslo, Nairobi, Kyoto, Lima, Toronto, Prague, Cairo, Dublin, Seoul, Madrid,
    Vienna, Helsinki, Athens, Warsaw, Budapest, Lagos, Accra, Dakar, Tunis, Mumbai,
    Chennai, Kolkata, Delhi, Karachi, Lahore, Dhaka, Colombo, Hanoi, Bangkok, Manila,
    Jakarta, Osaka, Tokyo, Beijing, Shanghai, Taipei, Melbourne, Perth, Brisbane,
    Auckland, Wellington, Santiago, Bogota, Quito, Montevideo, Havana, Boston, Chicago,
    Denver, Seattle, Houston, Atlanta, Montreal, Vancouver, Ottawa, Calgary, London,
    Bristol, Leeds, Glasgow, Cardiff, Belfast, Norwich, York, Paris, Lyon, Marseille,
    Brussels, Antwerp, Rotterdam, Utrecht, Berlin, Hamburg, Munich, Leipzig, Zurich,
    Geneva, Milan, Turin, Naples, Bologna, Seville, Valencia, Porto, Stockholm,
    Copenhagen, Reykjavik, Tallinn, Riga, Vilnius, Istanbul, Ankara, Beirut, Amman
""")
_JOBS = _items("""
    nurse, architect, plumber, teacher, carpenter, electrician, baker, librarian,
    dentist, pharmacist, surgeon, vet, midwife, paramedic, firefighter, police officer,
    judge, solicitor, accountant, auditor, economist, translator, interpreter, editor,
    journalist, novelist, poet, actor, dancer, singer, composer, sculptor, illustrator,
    photographer, tailor, cobbler, jeweller, clockmaker, blacksmith, welder, mechanic,
    bus driver, train driver, pilot, flight attendant, sailor, fisherman, farmer,
    gardener, florist, forester, beekeeper, butcher, chef, waiter, barista, brewer,
    hairdresser, optician, physiotherapist, psychologist, social worker, chemist,
    physicist, biologist, geologist, astronomer, mathematician, historian,
    archaeologist, programmer, web designer, civil engineer, surveyor, estate agent,
    bricklayer, roofer, glazier, postman, receptionist, lifeguard, tour guide
""")
_PETS = _items("""
    ferret, tabby cat, rabbit, hamster, tortoise, parrot, canary, goldfish, gecko, iguana,
    hedgehog, guinea pig, gerbil, chinchilla, poodle, beagle, greyhound, labrador,
    dachshund, terrier, collie, spaniel, budgie, cockatoo, python, chameleon, pony,
    donkey, goat, duck, pig, alpaca, tarantula, newt, rat, Siamese cat
""")
_INSTRUMENTS = _items("""
    cello, oboe, ukulele, piano, violin, viola, double bass, harp, flute, piccolo,
    clarinet, bassoon, saxophone, trumpet, trombone, tuba, French horn, euphonium,
    accordion, concertina, banjo, mandolin, lute, sitar, guitar, bass guitar, organ,
    harpsichord, snare drum, hurdy-gurdy, marimba, xylophone, vibraphone, glockenspiel, didgeridoo,
    recorder, harmonica, tin whistle, zither, dulcimer, tabla, triangle, tambourine,
    theremin
""")
_SPORTS = _items("""
    tennis, rowing, judo, cricket, hockey, badminton, squash, table tennis, volleyball,
    basketball, handball, netball, rugby, baseball, golf, swimming, diving, water polo,
    sailing, surfing, kayaking, fencing, archery, boxing, wrestling, karate, taekwondo,
    weightlifting, gymnastics, trampolining, cycling, mountain biking, triathlon,
    long-distance running, hurdling, pole vaulting, skiing, snowboarding, ice skating,
    curling, bowls, darts, snooker, rock climbing, horse riding, skateboarding
""")
_HOBBIES = _items("""
    pottery, birdwatching, knitting, crochet, embroidery, quilting, calligraphy, origami,
    woodcarving, gardening, beekeeping, baking, home brewing, jam making, cheese making,
    watercolour painting, sketching, photography, film making, stamp collecting,
    coin collecting, stargazing, model railways, kite flying, chess, bridge, poker,
    crossword puzzles, sudoku, jigsaw puzzles, magic tricks, juggling, ballroom dancing,
    salsa dancing, tap dancing, choir singing, amateur dramatics, creative writing,
    genealogy, local history, metal detecting, fossil hunting, foraging, fly fishing,
    camping, hillwalking, geocaching, astrology, flower arranging, bonsai growing,
    candle making, soap making, jewellery making, bookbinding, furniture restoration,
    clock repair, blogging, video games, board games, ventriloquism, scrapbooking
""")
_LANGUAGES = _items("""
    Welsh, Swahili, Finnish, Portuguese, Japanese, Korean, Mandarin, Cantonese, Arabic,
    Hebrew, Turkish, Greek, Russian, Ukrainian, Polish, Czech, Slovak, Hungarian,
    Romanian, Bulgarian, Serbian, Croatian, Slovene, Albanian, Italian, Spanish, Catalan,
    Basque, French, Breton, Dutch, German, Danish, Swedish, Norwegian, Icelandic,
    Estonian, Latvian, Lithuanian, Irish, Hindi, Urdu, Bengali, Punjabi, Tamil, Telugu,
    Thai, Vietnamese, Malay, Zulu, Yoruba, Amharic, Persian, Georgian, Armenian
""")
_CARS = _items("""
    Volvo, Toyota, Honda, Nissan, Mazda, Subaru, Suzuki, Mitsubishi, Lexus, Hyundai, Kia,
    Ford, Chevrolet, Cadillac, Chrysler, Dodge, Jeep, Tesla, Buick, Audi, BMW, Mercedes,
    Porsche, Volkswagen, Opel, Skoda, Isuzu, Fiat, Alfa Romeo, Lancia, Ferrari, Maserati,
    Renault, Peugeot, Citroen, Dacia, Saab, Polestar, Jaguar, Bentley, Land Rover,
    Vauxhall, Lotus, Mini
""")
_MONTHS = (
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31),
    ("June", 30), ("July", 31), ("August", 31), ("September", 30), ("October", 31),
    ("November", 30), ("December", 31),
)  # fmt: skip

# --- Wordings --------------------------------------------------------------------

_LEAD_INS = (
    "by the way, ",
    "for the record, ",
    "as it happens, ",
    "just so you know, ",
    "I should mention that ",
    "it may help to know that ",
    "one more thing: ",
)
_PERSON_LEAD_INS = (
    "as far as I know, ",
    "everyone knows that ",
    "I heard that ",
    "if I remember rightly, ",
)


@dataclass(frozen=True)
class Relation:
    """One thing that can be said of a subject, with every way of saying it.

    ``kind`` is ``"person"`` or ``"thing"``; the relations of persons also hold
    for the first person, with the wordings whose names begin with ``self_``.
    ``values`` lists the values of a closed kind and is empty for an open one,
    whose values are made up by :meth:`FactMaker.value`.
    """

    name: str
    kind: str
    statements: tuple[str, ...]
    updates: tuple[str, ...]
    questions: tuple[str, ...]
    self_statements: tuple[str, ...] = ()
    self_updates: tuple[str, ...] = ()
    self_questions: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


_ALL_RELATIONS = (
    Relation(
        name="colour",
        kind="person",
        values=_COLOURS,
        statements=(
            "{s}'s favourite colour is {v}.",
            "{v} is {s}'s favourite colour.",
            "{v} is the colour that {s} likes best.",
            "the colour {s} loves most is {v}.",
            "of all the colours there are, {s} likes {v} best.",
            "{s} likes {v} more than any other colour.",
        ),
        updates=(
            "{s}'s favourite colour is now {v}.",
            "these days {s}'s favourite colour is {v}.",
            "{s} has changed favourite colour and now prefers {v}.",
        ),
        questions=(
            "What is {s}'s favourite colour?",
            "Which colour does {s} like best?",
            "What colour does {s} prefer to all others?",
            "Of all the colours, which one is {s}'s favourite?",
            "What is the colour {s} loves most?",
        ),
        self_statements=(
            "my favourite colour is {v}.",
            "{v} is the colour I like best.",
            "I like {v} more than any other colour.",
        ),
        self_updates=(
            "my favourite colour is now {v}.",
            "these days my favourite colour is {v}.",
        ),
        self_questions=(
            "What is my favourite colour?",
            "Which colour do I like best?",
            "What colour do I love most?",
        ),
    ),
    Relation(
        name="food",
        kind="person",
        values=_FOODS,
        statements=(
            "{s}'s favourite food is {v}.",
            "{v} is {s}'s favourite food.",
            "there is nothing {s} would rather eat than {v}.",
            "the food {s} likes best is {v}.",
            "{s} would eat {v} every day if that were possible.",
            "{v} is the dish that {s} always asks for.",
        ),
        updates=(
            "{s}'s favourite food is now {v}.",
            "these days the food {s} likes best is {v}.",
            "{s} has a new favourite food, and it is {v}.",
        ),
        questions=(
            "What is {s}'s favourite food?",
            "Which food does {s} like best?",
            "What does {s} like to eat most of all?",
            "What dish would {s} choose to eat?",
            "What would {s} rather eat than anything else?",
        ),
        self_statements=(
            "my favourite food is {v}.",
            "the food I like best is {v}.",
            "there is nothing I would rather eat than {v}.",
        ),
        self_updates=(
            "my favourite food is now {v}.",
            "I have a new favourite food, and it is {v}.",
        ),
        self_questions=(
            "What is my favourite food?",
            "Which food do I like best?",
            "What do I like to eat most of all?",
        ),
    ),
    Relation(
        name="drink",
        kind="person",
        values=_DRINKS,
        statements=(
            "{s}'s favourite drink is {v}.",
            "{v} is {s}'s favourite drink.",
            "the drink {s} likes best is {v}.",
            "when thirsty, {s} reaches for {v}.",
            "{s} likes to drink {v} more than anything else.",
            "{v} is what {s} always orders to drink.",
        ),
        updates=(
            "{s}'s favourite drink is now {v}.",
            "these days {s} always drinks {v}.",
            "{s} has a new favourite drink, which is {v}.",
        ),
        questions=(
            "What is {s}'s favourite drink?",
            "Which drink does {s} like best?",
            "What does {s} like to drink?",
            "What does {s} order to drink?",
            "What should I pour for {s} to drink?",
        ),
        self_statements=(
            "my favourite drink is {v}.",
            "the drink I like best is {v}.",
            "I like to drink {v} more than anything else.",
        ),
        self_updates=(
            "my favourite drink is now {v}.",
            "these days I always drink {v}.",
        ),
        self_questions=(
            "What is my favourite drink?",
            "Which drink do I like best?",
            "What do I like to drink?",
        ),
    ),
    Relation(
        name="city",
        kind="person",
        values=_CITIES,
        statements=(
            "{s} lives in {v}.",
            "{s}'s home is in {v}.",
            "{v} is the city where {s} lives.",
            "the city that {s} calls home is {v}.",
            "{v} is {s}'s home town.",
            "{s} has lived in {v} for years.",
        ),
        updates=(
            "{s} has moved to {v}.",
            "{s} now lives in {v}.",
            "these days {s}'s home is in {v}.",
            "{s} has left town and settled in {v}.",
        ),
        questions=(
            "Where does {s} live?",
            "Which city does {s} call home?",
            "In what town is {s}'s home?",
            "What city does {s} live in?",
            "Which city is home to {s}?",
        ),
        self_statements=(
            "I live in {v}.",
            "my home is in {v}.",
            "{v} is the city I call home.",
        ),
        self_updates=("I have moved to {v}.", "I now live in {v}."),
        self_questions=(
            "Where do I live?",
            "Which city do I call home?",
            "What city do I live in?",
        ),
    ),
    Relation(
        name="street",
        kind="person",
        statements=(
            "{s}'s house is on {v}.",
            "{s}'s street is called {v}.",
            "{v} is the street where {s}'s house stands.",
            "{v} is {s}'s street.",
            "the name of the street with {s}'s house on it is {v}.",
            "{s} has a house on {v}.",
        ),
        updates=(
            "{s}'s house is now on {v}.",
            "{s} has moved to a house on {v}.",
            "these days {s}'s street is {v}.",
        ),
        questions=(
            "Which street is {s}'s house on?",
            "What is the name of {s}'s street?",
            "On what street does {s} have a house?",
            "What is {s}'s street called?",
            "Which street would I walk down to reach {s}'s house?",
        ),
        self_statements=(
            "my house is on {v}.",
            "my street is called {v}.",
            "{v} is the street where my house stands.",
        ),
        self_updates=(
            "my house is now on {v}.",
            "I have moved to a house on {v}.",
        ),
        self_questions=(
            "Which street is my house on?",
            "What is the name of my street?",
            "What is my street called?",
        ),
    ),
    Relation(
        name="job",
        kind="person",
        values=_JOBS,
        statements=(
            "{s} works as {a_v}.",
            "{s} is {a_v}.",
            "{s} is {a_v} by profession.",
            "{s} earns a living as {a_v}.",
            "{s}'s job is that of {a_v}.",
            "{a_v} is what {s} is by trade.",
        ),
        updates=(
            "{s} now works as {a_v}.",
            "{s} has changed jobs and become {a_v}.",
            "these days {s} is {a_v}.",
        ),
        questions=(
            "What is {s}'s job?",
            "What does {s} do for a living?",
            "What is {s}'s profession?",
            "What kind of work does {s} do?",
            "What does {s} work as?",
        ),
        self_statements=(
            "I work as {a_v}.",
            "I am {a_v} by profession.",
            "I earn my living as {a_v}.",
        ),
        self_updates=(
            "I now work as {a_v}.",
            "I have changed jobs and become {a_v}.",
        ),
        self_questions=(
            "What is my job?",
            "What do I do for a living?",
            "What is my profession?",
        ),
    ),
    Relation(
        name="employer",
        kind="person",
        statements=(
            "{s} works for {v}.",
            "{s}'s employer is {v}.",
            "{v} is the company that employs {s}.",
            "{v} is {s}'s employer.",
            "the company {s} works for is {v}.",
            "{s} is on the staff of {v}.",
        ),
        updates=(
            "{s} now works for {v}.",
            "{s} has a new employer, {v}.",
            "{s} has left the old firm and joined {v}.",
        ),
        questions=(
            "Who does {s} work for?",
            "Which company does {s} work for?",
            "Who is {s}'s employer?",
            "What is the name of the firm that employs {s}?",
            "Which business pays {s}'s wages?",
        ),
        self_statements=(
            "I work for {v}.",
            "my employer is {v}.",
            "{v} is the company that employs me.",
        ),
        self_updates=(
            "I now work for {v}.",
            "I have left my old firm and joined {v}.",
        ),
        self_questions=(
            "Who do I work for?",
            "Which company employs me?",
            "Who is my employer?",
        ),
    ),
    Relation(
        name="pet",
        kind="person",
        values=_PETS,
        statements=(
            "{s} has {a_v} as a pet.",
            "{s} keeps {a_v}.",
            "{s}'s pet is {a_v}.",
            "{a_v} shares the house with {s}.",
            "the animal {s} keeps at home is {a_v}.",
            "{s} is the proud owner of {a_v}.",
        ),
        updates=(
            "{s} now keeps {a_v} instead.",
            "{s} has a new pet, {a_v}.",
            "these days {s}'s pet is {a_v}.",
        ),
        questions=(
            "What kind of pet does {s} have?",
            "What animal does {s} keep?",
            "What sort of animal is {s}'s pet?",
            "Which animal shares {s}'s home?",
        ),
        self_statements=(
            "I have {a_v} as a pet.",
            "I keep {a_v}.",
            "my pet is {a_v}.",
        ),
        self_updates=(
            "I now keep {a_v} instead.",
            "I have a new pet, {a_v}.",
        ),
        self_questions=(
            "What kind of pet do I have?",
            "What animal do I keep?",
            "What sort of animal is my pet?",
        ),
    ),
    Relation(
        name="pet_name",
        kind="person",
        statements=(
            "{s}'s pet is called {v}.",
            "the name of {s}'s pet is {v}.",
            "{v} is the name of {s}'s pet.",
            "{s} has a pet called {v}.",
            "{s} named the family pet {v}.",
            "{v} is what {s} calls the pet at home.",
        ),
        updates=(
            "{s}'s new pet is called {v}.",
            "{s}'s pet is now called {v}.",
            "{s} has given the pet a new name, {v}.",
        ),
        questions=(
            "What is {s}'s pet called?",
            "What is the name of {s}'s pet?",
            "What name did {s} give the pet?",
            "What does {s} call the family pet?",
        ),
        self_statements=(
            "my pet is called {v}.",
            "the name of my pet is {v}.",
            "I have a pet called {v}.",
        ),
        self_updates=(
            "my new pet is called {v}.",
            "my pet is now called {v}.",
        ),
        self_questions=(
            "What is my pet called?",
            "What is the name of my pet?",
            "What name did I give my pet?",
        ),
    ),
    Relation(
        name="sister",
        kind="person",
        statements=(
            "{s}'s sister is called {v}.",
            "{s} has a sister called {v}.",
            "{v} is {s}'s sister.",
            "the name of {s}'s sister is {v}.",
            "{s} grew up with a sister named {v}.",
            "{v} is the name of {s}'s only sister.",
        ),
        updates=(
            "{s}'s sister now goes by the name of {v}.",
            "{s}'s sister has changed her name to {v}.",
            "it turns out that {s}'s sister is really called {v}.",
        ),
        questions=(
            "What is {s}'s sister called?",
            "What is the name of {s}'s sister?",
            "Who is {s}'s sister?",
            "What name does {s}'s sister have?",
        ),
        self_statements=(
            "my sister is called {v}.",
            "I have a sister called {v}.",
            "{v} is my sister's name.",
        ),
        self_updates=(
            "my sister now goes by the name of {v}.",
            "my sister has changed her name to {v}.",
        ),
        self_questions=(
            "What is my sister called?",
            "What is my sister's name?",
            "Who is my sister?",
        ),
    ),
    Relation(
        name="brother",
        kind="person",
        statements=(
            "{s}'s brother is called {v}.",
            "{s} has a brother called {v}.",
            "{v} is {s}'s brother.",
            "the name of {s}'s brother is {v}.",
            "{s} grew up with a brother named {v}.",
            "{v} is the name of {s}'s only brother.",
        ),
        updates=(
            "{s}'s brother now goes by the name of {v}.",
            "{s}'s brother has changed his name to {v}.",
            "it turns out that {s}'s brother is really called {v}.",
        ),
        questions=(
            "What is {s}'s brother called?",
            "What is the name of {s}'s brother?",
            "Who is {s}'s brother?",
            "What name does {s}'s brother have?",
        ),
        self_statements=(
            "my brother is called {v}.",
            "I have a brother called {v}.",
            "{v} is my brother's name.",
        ),
        self_updates=(
            "my brother now goes by the name of {v}.",
            "my brother has changed his name to {v}.",
        ),
        self_questions=(
            "What is my brother called?",
            "What is my brother's name?",
            "Who is my brother?",
        ),
    ),
    Relation(
        name="instrument",
        kind="person",
        values=_INSTRUMENTS,
        statements=(
            "{s} plays the {v}.",
            "{s}'s instrument is the {v}.",
            "the {v} is the instrument that {s} plays.",
            "{s} plays the {v} in a small local group.",
            "the {v} is what {s} practises every evening.",
            "the instrument {s} learnt at school is the {v}.",
        ),
        updates=(
            "{s} now plays the {v}.",
            "{s} has switched instruments to the {v}.",
            "these days {s}'s instrument is the {v}.",
        ),
        questions=(
            "What instrument does {s} play?",
            "Which musical instrument does {s} play?",
            "What is {s}'s instrument?",
            "What does {s} play when making music?",
            "On which instrument does {s} practise?",
        ),
        self_statements=(
            "I play the {v}.",
            "my instrument is the {v}.",
            "the {v} is the instrument that I play.",
        ),
        self_updates=(
            "I now play the {v}.",
            "I have switched instruments to the {v}.",
        ),
        self_questions=(
            "What instrument do I play?",
            "What is my instrument?",
            "What do I play when I make music?",
        ),
    ),
    Relation(
        name="sport",
        kind="person",
        values=_SPORTS,
        statements=(
            "{s}'s favourite sport is {v}.",
            "{s}'s sport is {v}.",
            "{v} is the sport that {s} is keen on.",
            "the sport {s} trains for is {v}.",
            "{v} is {s}'s favourite sport.",
            "when it comes to sport, {s} prefers {v}.",
        ),
        updates=(
            "{s}'s favourite sport is now {v}.",
            "these days {s}'s sport is {v}.",
            "{s} has changed sports and taken up {v}.",
        ),
        questions=(
            "What is {s}'s favourite sport?",
            "Which sport is {s} keen on?",
            "What sport does {s} train for?",
            "What is {s}'s sport?",
            "When it comes to sport, what does {s} prefer?",
        ),
        self_statements=(
            "my favourite sport is {v}.",
            "the sport I train for is {v}.",
            "{v} is the sport that I am keen on.",
        ),
        self_updates=(
            "my favourite sport is now {v}.",
            "I have changed sports and taken up {v}.",
        ),
        self_questions=(
            "What is my favourite sport?",
            "Which sport am I keen on?",
            "What sport do I train for?",
        ),
    ),
    Relation(
        name="hobby",
        kind="person",
        values=_HOBBIES,
        statements=(
            "{s}'s hobby is {v}.",
            "{s} spends most weekends on {v}.",
            "the hobby that {s} enjoys most is {v}.",
            "{s} has {v} as a hobby.",
            "{s} is happiest with a free day and some {v}.",
            "for a hobby, {s} has chosen {v}.",
        ),
        updates=(
            "{s}'s hobby is now {v}.",
            "{s} has a new hobby, {v}.",
            "these days {s} spends most weekends on {v}.",
        ),
        questions=(
            "What is {s}'s hobby?",
            "Which hobby does {s} enjoy?",
            "What does {s} do as a hobby?",
            "How does {s} spend free time?",
            "What does {s} spend most weekends on?",
        ),
        self_statements=(
            "my hobby is {v}.",
            "I spend most weekends on {v}.",
            "the hobby I enjoy most is {v}.",
        ),
        self_updates=("my hobby is now {v}.", "I have a new hobby, {v}."),
        self_questions=(
            "What is my hobby?",
            "Which hobby do I enjoy?",
            "How do I spend my free time?",
        ),
    ),
    Relation(
        name="language",
        kind="person",
        values=_LANGUAGES,
        statements=(
            "{s} is learning {v}.",
            "the language {s} is learning is {v}.",
            "{v} is the language that {s} is studying.",
            "{s} takes lessons in {v} twice a week.",
            "{s} goes to evening classes in {v}.",
            "{v} is the language {s} is trying to learn.",
        ),
        updates=(
            "{s} is now learning {v}.",
            "{s} has switched to learning {v}.",
            "these days the language {s} is studying is {v}.",
        ),
        questions=(
            "Which language is {s} learning?",
            "What language is {s} studying?",
            "In which language does {s} take lessons?",
            "What language is {s} trying to learn?",
        ),
        self_statements=(
            "I am learning {v}.",
            "the language I am learning is {v}.",
            "I take lessons in {v}.",
        ),
        self_updates=(
            "I am now learning {v}.",
            "I have switched to learning {v}.",
        ),
        self_questions=(
            "Which language am I learning?",
            "What language am I studying?",
            "In which language do I take lessons?",
        ),
    ),
    Relation(
        name="car",
        kind="person",
        values=_CARS,
        statements=(
            "{s} drives {a_v}.",
            "{s}'s car is {a_v}.",
            "{a_v} is the car that {s} drives.",
            "the car parked outside {s}'s house is {a_v}.",
            "{s} owns {a_v} and takes good care of it.",
            "{s} gets about in {a_v}.",
        ),
        updates=(
            "{s} now drives {a_v}.",
            "{s} has sold the old car and bought {a_v}.",
            "these days {s}'s car is {a_v}.",
        ),
        questions=(
            "What car does {s} drive?",
            "Which make of car does {s} have?",
            "What make is {s}'s car?",
            "What kind of car does {s} own?",
        ),
        self_statements=(
            "I drive {a_v}.",
            "my car is {a_v}.",
            "{a_v} is the car that I drive.",
        ),
        self_updates=(
            "I now drive {a_v}.",
            "I have sold my old car and bought {a_v}.",
        ),
        self_questions=(
            "What car do I drive?",
            "Which make of car do I have?",
            "What kind of car do I own?",
        ),
    ),
    Relation(
        name="boat",
        kind="person",
        statements=(
            "{s}'s boat is called the {v}.",
            "{s} owns a boat named the {v}.",
            "the {v} is {s}'s boat.",
            "the name painted on {s}'s boat is the {v}.",
            "the boat that {s} sails is the {v}.",
            "{s} keeps a boat called the {v} in the harbour.",
        ),
        updates=(
            "{s}'s boat is now called the {v}.",
            "{s} has a new boat, the {v}.",
            "{s} has renamed the boat the {v}.",
        ),
        questions=(
            "What is {s}'s boat called?",
            "What is the name of {s}'s boat?",
            "What name is painted on {s}'s boat?",
            "Which boat does {s} own?",
        ),
        self_statements=(
            "my boat is called the {v}.",
            "I own a boat named the {v}.",
            "the {v} is my boat.",
        ),
        self_updates=(
            "my boat is now called the {v}.",
            "I have a new boat, the {v}.",
        ),
        self_questions=(
            "What is my boat called?",
            "What is the name of my boat?",
            "Which boat do I own?",
        ),
    ),
    Relation(
        name="birthday",
        kind="person",
        statements=(
            "{s}'s birthday is on {v}.",
            "{s} was born on {v}.",
            "{v} is {s}'s birthday.",
            "the day {s} celebrates a birthday is {v}.",
            "every year on {v}, {s} has a birthday party.",
            "{s} turns a year older on {v}.",
        ),
        updates=(
            "{s}'s birthday is actually on {v}.",
            "it turns out that {s} was born on {v}.",
            "{s}'s date of birth was wrong in the records and is really {v}.",
        ),
        questions=(
            "When is {s}'s birthday?",
            "What is the date of {s}'s birthday?",
            "On what day was {s} born?",
            "On which date does {s} turn a year older?",
        ),
        self_statements=(
            "my birthday is on {v}.",
            "I was born on {v}.",
            "{v} is my birthday.",
        ),
        self_updates=(
            "my birthday is actually on {v}.",
            "it turns out that I was born on {v}.",
        ),
        self_questions=(
            "When is my birthday?",
            "What is the date of my birthday?",
            "On what day was I born?",
        ),
    ),
    Relation(
        name="door_code",
        kind="person",
        statements=(
            "{s}'s door code is {v}.",
            "the code for {s}'s front door is {v}.",
            "{v} is the code that opens {s}'s door.",
            "{v} is {s}'s door code.",
            "the keypad at {s}'s front door takes the code {v}.",
            "{s}'s front door opens with the code {v}.",
        ),
        updates=(
            "{s}'s door code is now {v}.",
            "{s} has changed the door code to {v}.",
            "the new code for {s}'s front door is {v}.",
        ),
        questions=(
            "What is {s}'s door code?",
            "Which code opens {s}'s front door?",
            "What is the code for {s}'s door?",
            "What do I type on the keypad at {s}'s door?",
        ),
        self_statements=(
            "my door code is {v}.",
            "the code for my front door is {v}.",
            "{v} is the code that opens my door.",
        ),
        self_updates=(
            "my door code is now {v}.",
            "I have changed my door code to {v}.",
        ),
        self_questions=(
            "What is my door code?",
            "Which code opens my front door?",
            "What is the code for my door?",
        ),
    ),
    Relation(
        name="extension",
        kind="person",
        statements=(
            "{s}'s phone extension is {v}.",
            "{s} is on extension {v}.",
            "{v} is {s}'s phone extension.",
            "the extension for {s}'s office phone is {v}.",
            "{s} can be reached by phone on extension {v}.",
            "{v} is the extension that reaches {s}.",
        ),
        updates=(
            "{s}'s phone extension is now {v}.",
            "{s} has moved to extension {v}.",
            "the new extension for {s} is {v}.",
        ),
        questions=(
            "What is {s}'s phone extension?",
            "Which extension is {s} on?",
            "What extension do I dial to reach {s}?",
            "On which extension can {s} be reached?",
        ),
        self_statements=(
            "my phone extension is {v}.",
            "I am on extension {v}.",
            "{v} is my phone extension.",
        ),
        self_updates=(
            "my phone extension is now {v}.",
            "I have moved to extension {v}.",
        ),
        self_questions=(
            "What is my phone extension?",
            "Which extension am I on?",
            "On which extension can I be reached?",
        ),
    ),
    Relation(
        name="location",
        kind="thing",
        statements=(
            "{s} is {v}.",
            "I put {s} {v}.",
            "you will find {s} {v}.",
            "{s} is kept {v}.",
            "I left {s} {v}.",
            "the place for {s} is {v}.",
            "{v} is where I left {s}.",
        ),
        updates=(
            "{s} is now {v}.",
            "I have moved {s}, and it is now {v}.",
            "these days {s} is kept {v}.",
            "someone has moved {s}, so look {v}.",
        ),
        questions=(
            "Where is {s}?",
            "Where can I find {s}?",
            "Where did I put {s}?",
            "In what place is {s} kept?",
            "Where should I look for {s}?",
        ),
    ),
)

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in _ALL_RELATIONS}
"""Every relation by its name: twenty of persons and one of things."""

_NAMES_OF_KIND = {kind: tuple(r.name for r in _ALL_RELATIONS if r.kind == kind) for kind in ("person", "thing")}


# --- Facts -----------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Whom or what a fact is about.

    ``kind`` is ``"person"``, ``"self"`` (the speaker, whose ``name`` is empty)
    or ``"thing"`` (whose ``name`` begins with "the").
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Fact:
    """One fact, and the full sentence that states it."""

    subject: Subject
    relation: str
    value: str
    statement: str


_SELF = Subject("", "self")

# Words that are spelt with a vowel and spoken with a consonant.
_CONSONANT_SOUNDS = ("euphonium", "ukulele", "uni", "use")


def _with_article(noun: str) -> str:
    word = noun.lower()
    vowel = word[0] in "aeiou" and not word.startswith(_CONSONANT_SOUNDS)
    return f"{'an' if vowel else 'a'} {noun}"


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _split_of_text(text: str) -> str:
    """The split that an open value belongs to: a fifth of them are held out."""
    return "held_out" if zlib.crc32(text.encode()) % 5 == 0 else "train"


def _share(names: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The part of a list that belongs to a split: every fifth entry is held out."""
    return tuple(name for i, name in enumerate(names) if (i % 5 == 4) == (split == "held_out"))


# What an invented name must not be.
_LISTED = frozenset(
    word.lower()
    for entries in (
        _FIRST, _LAST, _PET_NAMES, _STREET_STEMS, _COMPANY_STEMS, _BOAT_FIRST,
        _BOAT_SECOND, *(relation.values for relation in _ALL_RELATIONS),
    )
    for entry in entries
    for word in entry.split()
)  # fmt: skip


def usable_words(words: Iterable[str]) -> list[str]:
    """Those of the words that may be names in the train split, capitalised and sorted, each once.

    Left out are the words of every list here, since a fifth of each list is held out.
    """
    fits = {word.lower() for word in words if word.isascii() and word.isalpha() and 3 <= len(word) <= 9}
    return sorted(w.capitalize() for w in fits - _LISTED if _split_of_text(w.capitalize()) == "train")


class FactMaker:
    """Makes up subjects, facts about them, changes to those facts, and questions.

    All choices come from ``rng``.  ``split`` is one of :data:`SPLITS`.  ``words``
    (see :func:`usable_words`), if given, serve as names beside the listed ones: a
    model that is trained on a short list of names learns the list, not to copy.
    """

    def __init__(self, rng: random.Random, split: str = "train", words: Sequence[str] = ()) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
        self.rng = rng
        self.split = split
        self.words = words
        self._used: set[str] = set()
        self._names: list[str] = []  # of the persons so far
        self._first = _share(_FIRST, split)
        self._last = _share(_LAST, split)
        self._female = _share(_FEMALE, split)
        self._male = _share(_MALE, split)
        self._pet_names = _share(_PET_NAMES, split)
        self._open_values: dict[str, Callable[[], str]] = {
            "street": lambda: self._in_split(self._street),
            "employer": lambda: self._in_split(self._company),
            "boat": lambda: self._in_split(self._boat),
            "location": lambda: self._in_split(self._location),
            "pet_name": lambda: self._word(_PET_WORD_SHARE) or rng.choice(self._pet_names),
            "sister": lambda: self._sibling(self._female),
            "brother": lambda: self._sibling(self._male),
            "birthday": self._birthday,
            "door_code": lambda: f"{rng.randrange(10_000):04d}",
            "extension": lambda: str(rng.randrange(*rng.choice(((100, 1000), (1000, 10_000))))),
        }

    def subject(self, kind: str = "person") -> Subject:
        """A subject with a name that this maker has not given out before.

        The first person (``kind="self"``) is always the same subject.  Raises
        ValueError for an unknown kind, and RuntimeError once no unused name can
        be found (there are about 20,000 things in the train split, 5,000 in the
        other, and no practical end of persons).
        """
        if kind == "self":
            return _SELF
        if kind == "person":
            make = self._person
        elif kind == "thing":
            make = self._thing
        else:
            raise ValueError(f"unknown kind {kind!r}, expected 'person', 'self' or 'thing'")
        for _ in range(_MOST_TRIES):
            name = make()
            if name not in self._used:
                self._used.add(name)
                self._names += [name] if kind == "person" else []
                return Subject(name, kind)
        raise RuntimeError(f"no unused name left for a {kind}")

    def fact(self, subject: Subject, relation: str | None = None) -> Fact:
        """A fact about a subject, with a value and a wording drawn at random."""
        if relation is None:
            kind = "thing" if subject.kind == "thing" else "person"
            relation = self.rng.choice(_NAMES_OF_KIND[kind])
        value = self._value_other_than(relation, subject.name.split())
        return Fact(subject, relation, value, self._statement(subject, relation, value))

    def update(self, fact: Fact) -> Fact:
        """The same subject and relation with a different value.

        Half of the statements say that something has changed; the other half
        are plain statements of the new value.
        """
        subject, relation = fact.subject, fact.relation
        value = self._value_other_than(relation, [fact.value, *subject.name.split()])
        if self.rng.random() < 0.5:
            statement = self._statement(subject, relation, value)
        else:
            wording = self.rng.choice(self._wordings(subject, relation, "updates"))
            statement = _capitalised(self._filled(wording, subject, value))
        return Fact(subject, relation, value, statement)

    def question(self, subject: Subject, relation: str) -> str:
        """A question that asks for the value of a relation."""
        wording = self.rng.choice(self._wordings(subject, relation, "questions"))
        return _capitalised(wording.format(s=subject.name))

    def value(self, relation: str) -> str:
        """A value for a relation, listed or made up."""
        values = RELATIONS[relation].values
        return self.rng.choice(values) if values else self._open_values[relation]()

    # Sentences

    @staticmethod
    def _wordings(subject: Subject, relation: str, use: str) -> tuple[str, ...]:
        entry = RELATIONS[relation]
        if (subject.kind == "thing") != (entry.kind == "thing"):
            raise ValueError(f"{relation!r} does not apply to a {subject.kind}")
        return getattr(entry, f"self_{use}" if subject.kind == "self" else use)

    @staticmethod
    def _filled(wording: str, subject: Subject, value: str) -> str:
        return wording.format(s=subject.name, v=value, a_v=_with_article(value))

    def _statement(self, subject: Subject, relation: str, value: str) -> str:
        wording = self.rng.choice(self._wordings(subject, relation, "statements"))
        sentence = self._filled(wording, subject, value)
        if self.rng.random() < _LEAD_IN_SHARE:
            more = _PERSON_LEAD_INS if subject.kind == "person" else ()
            sentence = self.rng.choice(_LEAD_INS + more) + sentence
        return _capitalised(sentence)

    # Values and names

    def _value_other_than(self, relation: str, taken: list[str]) -> str:
        while (value := self.value(relation)) in taken:
            pass
        return value

    def _in_split(self, make: Callable[[], str]) -> str:
        while _split_of_text(text := make()) != self.split:
            pass
        return text

    def _person(self) -> str:
        single = self.rng.random() < _SINGLE_NAME_SHARE
        if self.words and self._names and self.rng.random() < _NAMESAKE_SHARE:
            first = self.rng.choice(self._names).split()[0]
            return first if single else f"{first} {self._last_name()}"
        if self.rng.random() < 0.5:
            first = self._word() or self.rng.choice(self._first)
            return first if single else f"{first} {self._last_name()}"
        return self._invented() if single else f"{self._invented()} {self._invented()}"

    def _last_name(self) -> str:
        if self.words and self._names and self.rng.random() < _NAMESAKE_SHARE:
            return self.rng.choice(self._names).split()[-1]
        return self._word() or self.rng.choice(self._last)

    def _invented(self) -> str:
        while (word := self._in_split(self._syllables)).lower() in _LISTED:
            pass
        return word

    def _syllables(self) -> str:
        rng = self.rng
        count = 2 if rng.random() < 0.7 else 3
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count))
        if rng.random() >= _NO_CODA_SHARE:
            word += rng.choice(_CODAS)
        return word.capitalize()

    def _word(self, share: float = _WORD_SHARE) -> str | None:
        """For a share of the names any word, else None; always None without words."""
        if self.words and self.rng.random() < share:
            return self.rng.choice(self.words)
        return None

    def _sibling(self, names: tuple[str, ...]) -> str:
        if word := self._word():
            return word
        if self.rng.random() < _INVENTED_SIBLING_SHARE:
            return self._invented()
        return self.rng.choice(names)

    def _street(self) -> str:
        return f"{self._word() or self.rng.choice(_STREET_STEMS)} {self.rng.choice(_STREET_TYPES)}"

    def _company(self) -> str:
        if self.rng.random() < 0.4:
            return " & ".join(self._word() or stem for stem in self.rng.sample(_COMPANY_STEMS, 2))
        return f"{self._word() or self.rng.choice(_COMPANY_STEMS)} {self.rng.choice(_COMPANY_TRADES)}"

    def _boat(self) -> str:
        first, second = (self._word() or self.rng.choice(names) for names in (_BOAT_FIRST, _BOAT_SECOND))
        return f"{first} {second}"

    def _thing(self) -> str:
        return self._in_split(self._described_thing)

    def _described_thing(self) -> str:
        rng = self.rng
        if rng.random() < 0.6:
            quality = rng.choice(_THING_QUALITIES + _COLOUR_WORDS)
        else:
            quality = f"{rng.choice(_THING_QUALITIES)} {rng.choice(_COLOUR_WORDS)}"
        return f"the {quality} {rng.choice(_THINGS)}"

    def _location(self) -> str:
        prepositions, qualities, places = self.rng.choice(_LOCATIONS)
        choice = self.rng.choice
        return f"{choice(prepositions)} the {choice(qualities)} {choice(places)}"

    def _birthday(self) -> str:
        month, days = self.rng.choice(_MONTHS)
        return f"{self.rng.randint(1, days)} {month}"
