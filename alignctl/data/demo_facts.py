"""The closed questions of the demo data set: categories with their members, and questions with one answer.

Plain tables, parsed by demo_families. The members of a category are also what the gold score accepts, so
they are broad rather than tidy; a name may belong to several categories. What stands after the bar is
accepted too but not given as an answer: other spellings, and members that another one contains.
"""

from __future__ import annotations

_CATEGORIES = """
fruit, fruits: apple, banana, orange, grape, strawberry, mango, pear, cherry, peach, lemon, pineapple, kiwi,
  plum, lime, watermelon, melon, blueberry, raspberry, blackberry, apricot, fig, papaya, coconut, avocado,
  pomegranate, grapefruit, cranberry, tomato, date, guava, tangerine, nectarine | cantaloupe
vegetable, vegetables: carrot, potato, tomato, onion, cabbage, spinach, broccoli, cucumber, pepper, lettuce,
  pea, bean, corn, celery, kale, garlic, cauliflower, pumpkin, zucchini, eggplant, radish, asparagus, leek,
  beet, turnip, squash, mushroom, brussels sprout | bell pepper, green bean, sweet potato
animal, animals: dog, cat, horse, cow, lion, tiger, elephant, bear, monkey, rabbit, sheep, goat, pig, fox,
  wolf, deer, giraffe, zebra, mouse, camel, kangaroo, panda, dolphin, whale, snake, frog, turtle, duck,
  chicken, eagle, owl, penguin, shark, squirrel, leopard, cheetah, gorilla, koala, hippopotamus, rhinoceros,
  crocodile, hamster, bee, ant, butterfly, polar bear, jaguar, donkey, otter | bird, fish, rat
bird, birds: eagle, owl, robin, sparrow, parrot, penguin, swan, duck, goose, crow, pigeon, hawk, falcon,
  peacock, flamingo, turkey, seagull, woodpecker, hummingbird, stork, raven, ostrich, dove, finch, blue jay,
  cardinal, pelican, heron, swallow, toucan, magpie, canary, chickadee, wren, warbler, kingfisher | chicken
fish, kinds of fish: salmon, tuna, trout, cod, shark, herring, sardine, carp, goldfish, catfish, bass, eel,
  mackerel, halibut, perch, pike, tilapia, snapper, swordfish, clownfish, flounder, haddock, anchovy, sole,
  grouper
insect, insects: ant, bee, fly, butterfly, mosquito, beetle, moth, wasp, ladybug, grasshopper, cricket,
  dragonfly, cockroach, termite, flea, firefly, hornet, caterpillar, praying mantis, aphid, cicada, locust |
  bumblebee
colour, colours: red, blue, green, yellow, orange, purple, black, white, brown, pink, grey, violet,
  turquoise, indigo, magenta, cyan, beige, maroon, teal, lavender | gray, gold, silver
flower, flowers: rose, tulip, daisy, lily, sunflower, orchid, violet, daffodil, iris, poppy, lavender,
  carnation, peony, marigold, jasmine, hydrangea, dahlia, lilac, hibiscus, pansy, chrysanthemum, bluebell,
  geranium, petunia, zinnia, magnolia, dandelion | snapdragon
tree, trees: oak, pine, maple, birch, willow, elm, palm, cedar, beech, ash, fir, spruce, cherry, apple,
  chestnut, redwood, poplar, cypress, walnut, olive, sequoia, eucalyptus, magnolia, dogwood, juniper,
  sycamore
country, countries: France, Germany, Italy, Spain, China, Japan, India, Brazil, Canada, Mexico, Egypt,
  Russia, Australia, Portugal, Greece, Norway, Sweden, Poland, Turkey, Kenya, Argentina, Chile, Peru,
  Vietnam, Thailand, Ireland, Nigeria, South Africa, Indonesia, Netherlands, Switzerland, Austria, Denmark,
  Finland, South Korea, Iran, Cuba, Singapore, Belgium, New Zealand | United States, United Kingdom, USA,
  UK, England
city, big cities: London, Paris, New York, Tokyo, Rome, Berlin, Madrid, Moscow, Beijing, Cairo, Chicago,
  Sydney, Los Angeles, Toronto, Mumbai, Delhi, Shanghai, Mexico City, Vienna, Athens, Lisbon, Dublin,
  Istanbul, Bangkok, Seoul, Hong Kong, Singapore, San Francisco, Boston, Barcelona, Amsterdam, Houston,
  Miami, Seattle, Dubai, Sao Paulo, Buenos Aires, Philadelphia, Dallas, Melbourne, Montreal, Phoenix, San
  Diego, Las Vegas, Washington
sport, sports: football, basketball, tennis, baseball, hockey, golf, rugby, swimming, volleyball, cricket,
  boxing, skiing, running, cycling, badminton, surfing, wrestling, rowing, skating, gymnastics, judo,
  karate, softball, table tennis, archery, fencing, snowboarding, climbing, sailing, lacrosse | soccer,
  track, track and field
musical instrument, musical instruments: piano, guitar, violin, drum, flute, trumpet, cello, harp,
  saxophone, clarinet, trombone, banjo, oboe, organ, accordion, harmonica, tuba, ukulele, bass, bassoon,
  viola, xylophone, mandolin, keyboard, french horn, tambourine, recorder
drink, drinks: water, milk, coffee, tea, lemonade, wine, beer, soda, cocoa, apple juice, hot chocolate,
  smoothie, cola, iced tea, green tea, milkshake, champagne, whiskey, vodka, rum, gin, martini, mojito,
  margarita | coke, cocktail, juice, orange juice
job, jobs: teacher, doctor, nurse, farmer, baker, lawyer, engineer, pilot, cook, chef, driver, police
  officer, firefighter, dentist, artist, carpenter, plumber, electrician, waiter, writer, scientist,
  butcher, gardener, mechanic, librarian, accountant, programmer, manager, designer, architect, developer,
  actor, singer, soldier, journalist, cashier | software engineer, data analyst, data scientist, graphic
  designer
piece of clothing, pieces of clothing: shirt, dress, coat, hat, scarf, sock, shoe, jacket, skirt, sweater,
  glove, jeans, trousers, boot, belt, tie, suit, blouse, shorts, cap, sandal, cardigan, hoodie, mitten,
  vest, underwear, sneaker, leggings | pants, tee
piece of furniture, pieces of furniture: chair, table, bed, sofa, desk, bookshelf, wardrobe, cupboard,
  stool, bench, armchair, dresser, cabinet, lamp, shelf, ottoman, nightstand, drawer, mirror | bedside
  table, couch, coffee table, dining table, bookcase
body part, parts of the body: head, arm, leg, hand, foot, eye, ear, nose, mouth, knee, finger, toe, neck,
  shoulder, back, elbow, heart, stomach, brain, lung, liver, hair, face, skin, chest, bone, kidney, tooth,
  tongue, muscle, hip, ankle, wrist | feet, teeth
planet, planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune
day of the week, days of the week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
month, months of the year: January, February, March, April, May, June, July, August, September, October,
  November, December
vehicle, vehicles: car, bus, train, truck, bicycle, motorcycle, airplane, boat, ship, van, taxi, tram,
  scooter, helicopter, tractor, ambulance, ferry, subway, jeep, sedan, wagon, minivan, pickup truck | bike,
  plane, suv, motorbike
shape, shapes: circle, square, triangle, rectangle, oval, star, diamond, pentagon, hexagon, cube, sphere,
  cone, cylinder, octagon, trapezoid, rhombus, ellipse, parallelogram, pyramid, polygon
metal, metals: gold, silver, iron, copper, aluminum, steel, lead, tin, zinc, nickel, platinum, titanium,
  bronze, brass, chromium, mercury, tungsten, cobalt, palladium, magnesium, lithium | aluminium
language, languages: English, French, German, Spanish, Italian, Chinese, Japanese, Russian, Arabic,
  Portuguese, Hindi, Greek, Turkish, Dutch, Polish, Korean, Swedish, Latin, Swahili, Bengali, Urdu, Hebrew,
  Vietnamese, Thai | Mandarin
school subject, school subjects: math, history, geography, science, art, music, English, biology, chemistry,
  physics, physical education, literature, reading, writing, computer science, economics, social studies,
  language arts, algebra, geometry, philosophy, psychology, drama, spelling | maths, mathematics
tool, tools: hammer, screwdriver, saw, drill, wrench, pliers, axe, shovel, rake, knife, scissors, tape
  measure, ladder, chisel, level, file, screw, nail, spade, hoe, trowel, ruler, wheelbarrow, sandpaper,
  crowbar
spice, spices: salt, pepper, cinnamon, ginger, cumin, turmeric, paprika, garlic, nutmeg, clove, cardamom,
  saffron, vanilla, chili, basil, oregano, thyme, coriander, rosemary, mustard, curry, cayenne, allspice,
  bay leaf, fennel, anise | cayenne pepper, black pepper
room, rooms in a house: kitchen, bedroom, bathroom, living room, dining room, hall, attic, basement, garage,
  office, study, library, closet, pantry, hallway, nursery, playroom, den, family room | laundry room, guest
  room
feeling, feelings: joy, anger, fear, love, sadness, happiness, pride, hope, shame, guilt, jealousy,
  surprise, envy, excitement, disgust, anxiety, gratitude, boredom, loneliness, frustration, grief,
  contentment, peace | calm, happy, sad, angry, scared, excited, anxious
dessert, desserts: cake, pie, ice cream, cookie, pudding, brownie, cheesecake, tiramisu, donut, tart,
  cupcake, muffin, mousse, apple pie, custard, fudge, sorbet, gelato, candy, creme brulee, pastry, lava
  cake, truffle, fruit salad, macaron | doughnut, chocolate cake, chocolate mousse
kitchen tool, things found in a kitchen: knife, fork, spoon, pan, pot, plate, cup, bowl, oven, stove,
  fridge, sink, kettle, toaster, blender, microwave, whisk, cutting board, spatula, glass, frying pan, dish,
  dishwasher, ladle, mixer, mug, cabinet, apron, towel, cupboard | refrigerator, utensil, table, chair
"""
# An indented line continues the one above.
CATEGORIES = _CATEGORIES.strip().replace("\n  ", " ").splitlines()

# Categories no name of which could be argued to belong to another of them: for questions of yes or no.
EXCLUSIVE = (
    "fruit", "bird", "fish", "sport", "musical instrument", "country", "city", "job", "drink", "vehicle",
    "language", "planet", "month", "day of the week", "piece of furniture", "body part",
)  # fmt: skip

# Kind: ways to ask, the sentence a chatty answer would use, and the pairs "subject = answer/also accepted".
QUESTIONS = {
    "capital": (
        (
            "What is the capital of {x}?",
            "Which city is the capital of {x}?",
            "Name the capital of {x}.",
            "Tell me the capital city of {x}.",
            "Do you know the capital of {x}?",
        ),
        "The capital of {x} is {y}.",
        "France = Paris, Italy = Rome, Germany = Berlin, Spain = Madrid, Japan = Tokyo, China = Beijing, "
        "Russia = Moscow, Egypt = Cairo, Greece = Athens, Portugal = Lisbon, Austria = Vienna, Poland = "
        "Warsaw, Norway = Oslo, Sweden = Stockholm, Finland = Helsinki, Denmark = Copenhagen, Ireland = "
        "Dublin, Hungary = Budapest, England = London, Canada = Ottawa, Cuba = Havana, Peru = Lima, "
        "Kenya = Nairobi, Thailand = Bangkok, South Korea = Seoul, Iran = Tehran, Iraq = Baghdad, Turkey "
        "= Ankara, Belgium = Brussels, the Czech Republic = Prague, Ukraine = Kyiv/Kiev, Vietnam = "
        "Hanoi, Syria = Damascus, Lebanon = Beirut, Australia = Canberra, Venezuela = Caracas, Jamaica = "
        "Kingston, Chile = Santiago, Indonesia = Jakarta, Romania = Bucharest, Bulgaria = Sofia, "
        "Scotland = Edinburgh, Nepal = Kathmandu",
    ),
    "opposite": (
        (
            "What is the opposite of {x}?",
            "Give the opposite of the word {x}.",
            "Which word means the opposite of {x}?",
            "I need the opposite of {x}.",
        ),
        "The opposite of {x} is {y}.",
        "hot = cold, big = small/little, up = down, day = night, black = white, fast = slow, happy = "
        "sad/unhappy, good = bad/evil, old = young/new, rich = poor, open = closed/close/shut, long = "
        "short, high = low, hard = soft/easy, light = dark/heavy, wet = dry, full = empty, left = right, "
        "strong = weak, early = late, first = last, win = lose, push = pull, near = far, inside = "
        "outside, true = false, clean = dirty, love = hate, buy = sell, begin = end/finish, loud = "
        "quiet/soft, thick = thin, north = south, east = west, wide = narrow, asleep = awake, always = "
        "never, war = peace, cheap = expensive, friend = enemy/foe, summer = winter, front = back, laugh "
        "= cry, yes = no",
    ),
}  # fmt: skip

COUNTS = (
    "days in a week = 7, months in a year = 12, legs on a spider = 8, legs on a dog = 4, wheels on a car "
    "= 4, hours in a day = 24, minutes in an hour = 60, sides in a triangle = 3, sides in a square = 4, "
    "fingers on one hand = 5, seconds in a minute = 60, days in a normal year = 365, wheels on a bicycle "
    "= 2, letters in the English alphabet = 26, cents in a dollar = 100, years in a century = 100, eyes "
    "on a cat = 2, seasons in a year = 4, eggs in a dozen = 12, legs on a chicken = 2, colours in a "
    "rainbow = 7, years in a decade = 10, legs on a horse = 4, toes on one foot = 5"
)
