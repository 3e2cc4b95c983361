"""The open topics of the demo data set: three plain sentences each, and further words that belong to it.

The first sentence names the topic and stands alone; the others follow it. A topic's keywords are the
content words of its sentences plus the further words, so that an answer in other words still counts.
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
# An indented line continues the one above.
TOPICS = _TOPICS.strip().replace("\n  ", " ").splitlines()
