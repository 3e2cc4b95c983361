"""What the demo data set knows: open topics, categories with their members, and questions with one answer.

Plain tables, parsed by demo_families. A topic has three plain sentences, of which the first names it and
stands alone; what stands after its bar belongs to it too, so that an answer in other words still counts.
The members of a category are also what the gold score accepts, so they are broad rather than tidy; a name
may belong to several categories. What stands after the bar there is accepted but not given as an answer:
other spellings, and members that another one contains. An indented line continues the one above.
"""

from __future__ import annotations

_TOPICS = """
the sun | solar system hot sunlight centre center gas sky planet bright
The sun is a star in the sky. It gives us light and heat. Plants use its energy to grow.
the moon | lunar gravity tide phase satellite natural surface crater space
The moon goes around the earth. It shines at night. Its light comes from the sun.
rain | cloud rainfall wet storm precipitation liquid atmosphere
Rain is water that falls from clouds. It helps plants grow. It also fills rivers and lakes.
snow | crystal freeze temperature cloud flake atmosphere precipitation white
Snow is made of tiny ice crystals. It falls in cold winter weather. Children like to play in it.
wind | pressure blow energy breeze atmosphere turbine speed
Wind is air that moves over the land. It can turn large blades to make power. Strong wind can damage trees.
bees | hive insect pollinator colony queen buzz wing
Bees are small insects that make honey. They fly from flower to flower. They carry pollen on their legs.
ants | colony queen worker small social soil
Ants are tiny insects that live in large groups. They build nests under the ground. They can carry heavy
  food.
cats | feline fur domestic independent claw meow carnivore
Cats are popular pets with soft fur. They like to sleep and hunt mice. They purr when they are happy.
dogs | canine loyal breed domestic bark owner companion
Dogs are friendly pets and good friends. They like to run and play. They can guard a house.
horses | mammal hoof saddle mane gallop domestic large
Horses are strong animals with four legs. People ride them and feed them hay. They can run very fast.
elephants | africa asia mammal tusk large ivory intelligent
Elephants are the largest land animals. They have a long trunk and big ears. They eat grass and leaves.
fish | gill fin scale aquatic ocean river sea swim
Fish are animals that live in water. They breathe with gills. They swim by moving their fins and tails.
penguins | flightless antarctica black white feather ocean
Penguins are birds that cannot fly. They swim very well in cold seas. They eat fish and lay eggs.
trees | forest root bark oxygen plant branch shade tall
Trees are tall plants with a trunk of wood. Their leaves make oxygen. Birds build nests in them.
roses | petal red garden fragrance romance bloom scent love
Roses are flowers with a sweet smell. They have sharp thorns. Many people give them as a gift of love.
bread | loaf yeast dough wheat baked staple grain oven
Bread is made from flour and water. It is baked in a hot oven. Many people eat it for breakfast.
milk | dairy calcium nutrient vitamin mammal white
Milk is a white drink that comes from cows. It helps children grow strong bones. We make cheese from it.
cheese | dairy protein cow goat taste curd flavor
Cheese is a food made from milk. It can be soft or hard. People put it on bread and pizza.
coffee | caffeine brew roast beverage aroma cup
Coffee is a hot drink made from roasted beans. It helps people wake up. Some add milk and sugar.
tea | herbal beverage brew caffeine cup aroma green black
Tea is a drink made from dried leaves. The leaves are put into hot water. Many people like it with lemon.
chocolate | cacao candy dessert dark treat bean
Chocolate is a sweet food made from cocoa beans. It can be dark or white. Children love to eat it.
apples | juicy vitamin fiber orchard snack crisp nutrient
Apples are round fruits that grow on trees. They can be red or green. They taste sweet and are healthy.
pizza | crust dough topping pepperoni dish italian baked oven
Pizza is a flat bread with cheese and tomato sauce. It comes from Italy. Many people eat it with friends.
soup | broth vegetable bowl ingredient meal simmer dish
Soup is a warm liquid food. It is cooked from vegetables or meat. You eat it with a spoon.
bicycles | ride pedal exercise transport cycling vehicle frame
Bicycles have two wheels and two pedals. You ride them with your legs. They need no fuel and keep you fit.
cars | vehicle drive transportation motor passenger gas automobile
Cars are machines with four wheels and an engine. People drive them on roads. Most cars need fuel.
trains | railway locomotive transportation passenger rail travel freight
Trains run on rails made of steel. They carry many passengers and goods. They stop at stations.
ships | vessel ocean boat cargo sail transport navigate
Ships are large boats that cross the sea. They carry cars and people. A captain is in charge of the crew.
airplanes | flight aircraft engine pilot fly travel airport
Airplanes are machines that fly in the sky. They have wings and engines. A pilot sits in the front.
books | read page author novel literature genre reader
Books have many pages with words and pictures. They tell stories and share knowledge. You can read them at
  home.
libraries | read resource borrow public knowledge community information
Libraries are places full of books. You can borrow books there for free. People go there to read and study.
schools | education classroom lesson knowledge learning skill
Schools are places where children learn. Teachers help them read and write. Students also make friends
  there.
hospitals | patient medical treatment care health surgery emergency
Hospitals are places for sick people. Doctors and nurses work there. They treat patients with care and
  medicine.
computers | data software device electronic information program internet
Computers are machines that work with data. You type on a keyboard and look at a screen. They follow
  programs.
telephones | call phone device communicate communication voice mobile
Telephones let people talk over long distances. You dial a number to call a friend. Most people now carry
  one.
clocks | hour minute hand second watch tick device
Clocks show us the time. They have hands for hours and minutes. Some ring an alarm in the morning.
money | currency coin pay economy bank exchange goods value
Money is used to buy food and clothes. It comes as coins and notes. Many people save it in a bank.
music | melody rhythm song emotion instrument art genre sing
Music is made of sounds and rhythm. People sing or play instruments. It can make us happy or calm.
painting | art artist colour color canvas creative express image
Painting is the art of working with a brush and colours. Artists paint on paper or canvas. It shows feelings
  and ideas.
football | soccer sport game player field kick match score
Football is a game for two teams. The players kick a ball into a goal. Fans watch the match and cheer.
swimming | exercise sport stroke muscle body aquatic activity
Swimming is a sport in the water. You move your arms and legs. It keeps your heart and body healthy.
sleep | dream brain body health energy bed restore relax
Sleep is a time of rest for the body. The brain sorts memories at night. Most people need eight hours in
  bed.
rivers | stream flow freshwater ocean lake valley bank current
Rivers are long streams of fresh water. They flow from hills to the sea. Fish and plants live in them.
mountains | hike elevation range hill climb landform slope summit
Mountains are very high places of rock. Their peaks are often covered with snow. People like to climb them.
deserts | arid sand hot sahara climate temperature cactus desertification
Deserts are very dry places with little rain. They are hot by day and cold at night. Camels can live there.
oceans | sea marine wave deep vast earth planet blue
Oceans are huge bodies of salt water. They cover most of the earth. Whales and many fish live there.
gardens | flower garden soil grow herb peaceful beautiful outdoor
Gardens are places where people grow plants. They have flowers and vegetables. They need water and sun.
teachers | educator classroom knowledge learning guide mentor skill
Teachers help students learn new things. They work in schools and explain lessons. Good teachers are
  patient.
doctors | medical medicine treat diagnose hospital disease care
Doctors treat sick people in hospitals. They look for the cause of an illness. They give medicine and
  advice.
farmers | crop agriculture land livestock field harvest farm cultivate
Farmers grow food on the land. They plant seeds and keep cows or sheep. They get up early to work.
firefighters | fire rescue emergency brave flame smoke safety hazard
Firefighters put out fires and save lives. They wear helmets and use long hoses. Their work is hard and
  brave.
winter | snow temperature ice weather season chill holiday
Winter is the coldest season of the year. The days are short and the nights are long. People wear warm
  coats.
summer | sunny heat weather season vacation sunshine sun outdoor
Summer is the warmest season of the year. The days are long and bright. Many families go to the beach.
volcanoes | eruption magma erupt mountain crust earth explode gas
Volcanoes are mountains with hot rock inside. Sometimes lava flows out of them. Ash and smoke rise into the
  sky.
rainbows | color colour arc light sunlight spectrum droplet red violet
Rainbows are bands of colours in the sky. They appear when the sun shines through rain. They have seven
  colours.
"""
TOPICS = _TOPICS.strip().replace("\n  ", " ").splitlines()

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
