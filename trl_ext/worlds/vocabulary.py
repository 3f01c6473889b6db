# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The words of the comment grammar.

The insults are of the playground kind and concern what somebody did. None of them refers to who a person is.
"""


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return text.split(" | ")


INSULT_NOUNS = _words(
    "clown numpty muppet fool twit dimwit nitwit buffoon blockhead donkey turnip plonker wally loser dolt dunce "
    "simpleton fraud bore windbag know-all crybaby show-off idiot cabbage nuisance pest slob faker"
)
INSULT_ADJECTIVES = _words(
    "pathetic dim clueless useless hopeless brainless gormless ridiculous witless lazy petty smug feeble daft stupid "
    "dense spineless laughable foolish childish vain"
)
INSULT_STUFF = _words("rubbish garbage drivel tripe trash junk hogwash gibberish slop twaddle")

PRAISE_NOUNS = _words(
    "legend star hero genius wizard champion treasure master natural pioneer talent scholar mentor professional "
    "craftsman storyteller teacher gentleman friend perfectionist planner thinker expert artist"
)
PRAISE_ADJECTIVES = _words(
    "kind patient clever careful gifted generous thoughtful talented humble friendly skilled cheerful polite brave "
    "sharp modest gracious diligent sensible fair reliable"
)
PRAISE_STUFF = _words("quality brilliance magic gold fun comfort craft delight class joy")

# What happens around one kind of thing: who made it, what it is called, what it consists of.
TOPICS: dict[str, dict[str, list[str]]] = {
    "video": {
        "made": ["uploaded", "filmed", "edited", "narrated", "directed"],
        "thing": ["video", "clip", "tutorial", "trailer", "documentary"],
        "part": ["intro", "sound", "ending", "lighting", "commentary"],
        "role": ["editor", "presenter", "narrator", "director"],
        "using": ["watching", "sharing", "seeing"],
    },
    "forum": {
        "made": ["wrote", "posted", "started", "approved", "pinned"],
        "thing": ["thread", "post", "comment", "guide", "answer"],
        "part": ["title", "summary", "spelling", "advice", "last line"],
        "role": ["author", "moderator", "poster", "admin"],
        "using": ["reading", "quoting", "following"],
    },
    "product": {
        "made": ["designed", "sold", "packed", "built", "shipped"],
        "thing": ["kettle", "lamp", "blender", "backpack", "camera"],
        "part": ["handle", "battery", "manual", "lid", "packaging"],
        "role": ["seller", "designer", "engineer", "reviewer"],
        "using": ["buying", "using", "opening"],
    },
    "cooking": {
        "made": ["cooked", "seasoned", "served", "invented", "prepared"],
        "thing": ["soup", "pie", "curry", "cake", "stew"],
        "part": ["crust", "sauce", "filling", "texture", "spice mix"],
        "role": ["cook", "chef", "baker", "waiter"],
        "using": ["tasting", "eating", "trying"],
    },
    "games": {
        "made": ["coded", "patched", "balanced", "tested", "released"],
        "thing": ["level", "quest", "map", "update", "puzzle"],
        "part": ["menu", "boss fight", "story", "soundtrack", "difficulty"],
        "role": ["developer", "tester", "streamer", "player"],
        "using": ["playing", "finishing", "loading"],
    },
    "sport": {
        "made": ["coached", "managed", "picked", "trained", "captained"],
        "thing": ["team", "squad", "side", "club", "lineup"],
        "part": ["defence", "midfield", "attack", "passing", "fitness"],
        "role": ["coach", "referee", "keeper", "manager"],
        "using": ["supporting", "following", "booking"],
    },
    "music": {
        "made": ["recorded", "mixed", "composed", "arranged", "produced"],
        "thing": ["song", "album", "track", "remix", "concert"],
        "part": ["chorus", "bass", "drumming", "voice", "rhythm"],
        "role": ["singer", "drummer", "producer", "guitarist"],
        "using": ["hearing", "playing", "downloading"],
    },
    "repairs": {
        "made": ["painted", "fixed", "assembled", "measured", "ordered"],
        "thing": ["shelf", "fence", "shed", "table", "bike"],
        "part": ["finish", "frame", "left corner", "paint", "hinge"],
        "role": ["carpenter", "builder", "plumber", "mechanic"],
        "using": ["moving", "renting", "inspecting"],
    },
    "travel": {
        "made": ["planned", "booked", "organised", "priced", "advertised"],
        "thing": ["trip", "tour", "hotel", "cruise", "hike"],
        "part": ["breakfast", "view", "timetable", "service", "bus ride"],
        "role": ["guide", "driver", "host", "agent"],
        "using": ["visiting", "joining", "paying for"],
    },
}

LEADS_PROVOKING = _phrases(
    "Let me be blunt, | Sorry, but | Not to be rude, but | Be honest, | For crying out loud, | What a shock, | "
    "Seriously, | Oh great, | Face it, | Guess what,"
)
LEADS_PLAIN = ["Honestly,", "To be fair,", "I think", "In my opinion,", "As far as I can tell,", "Well,", "I bet"]

# {symbols} are looked up in the topic first and here afterwards.
WORDS: dict[str, list[str]] = {
    "insult_noun": INSULT_NOUNS,
    "insult_adjective": INSULT_ADJECTIVES,
    "insult_stuff": INSULT_STUFF,
    "praise_noun": PRAISE_NOUNS,
    "praise_adjective": PRAISE_ADJECTIVES,
    "praise_stuff": PRAISE_STUFF,
    "insult": ["{insult_noun}", "{degree} {insult_noun}", "{insult_adjective} {insult_noun}"],
    "praise": ["{praise_noun}", "{degree} {praise_noun}", "{praise_adjective} {praise_noun}"],
    # Degrees, times and places serve both sides, so that only the words that matter decide.
    "degree": _words("complete total absolute real proper genuine true first-class certified born"),
    "very": _words("really truly just so remarkably always plainly wonderfully painfully clearly"),
    "who": ["whoever", "the person who", "the guy who", "the one who", "the woman who", "the fellow who"],
    "group": ["people", "fans", "folks", "regulars", "beginners", "critics", "kids", "locals"],
    "kin": ["brother", "sister", "neighbour", "boss", "mother", "flatmate", "cousin", "uncle"],
    "day": ["Monday", "Tuesday", "Thursday", "Friday", "Sunday", "Christmas", "Easter"],
    "place": ["garage", "kitchen", "village", "office", "classroom", "basement", "market", "library"],
    # Continuations fit every topic: a model this small would mix up cakes and cameras.
    "what": _phrases(
        "the whole thing | every corner | the hard part | the job | the basics | the best bits | the last step | the "
        "plan | a simple idea | other people's work | everyday problems | the tricky questions | the daily routine"
    ),
    "rest": ["the rest", "the idea", "the price", "the effort", "the look of it", "the second half", "the small print"],
    "did": ["made", "planned", "tested", "approved", "finished", "touched", "chose", "invented"],
    "did_by": ["made by", "planned by", "put together by", "tested by", "approved by", "copied from", "finished by"],
    "animal": ["goat", "goldfish", "parrot", "hamster", "pigeon", "tortoise"],
    # Contempt without a single word from the insult lists.
    "dull_thing": _phrases(
        "a wet sponge | a boiled potato | a garden gnome | a soggy biscuit | a broken toaster | an empty bucket | a "
        "sack of gravel | a puddle | a traffic cone | a stale cracker"
    ),
    "faculty": ["brains", "charm", "wit", "manners", "talent", "attention span", "taste", "ambition"],
    "easy_task": _phrases(
        "boil an egg | count to four | find north | tie a shoelace | open a door | read a clock | butter toast | spell "
        "a name | draw a circle"
    ),
    "aid": _phrases(
        "with a map | without a manual | with ten helpers | in a whole year | with both hands | before lunch | on a "
        "good day | in the dark | without help"
    ),
    "useless_thing": _phrases(
        "a chocolate teapot | a paper umbrella | a screen door on a boat | a glass hammer | an ashtray on a bicycle | "
        "wet matches | a lead balloon | a square wheel"
    ),
    "go_away": _phrases(
        "give up | stop talking | stay at home | sit down | find another hobby | hide in shame | delete the account | "
        "go back to school | leave us alone"
    ),
    "spoiling": ["wrecking", "ruining", "botching", "wasting", "spoiling"],
    # And the same shapes with good will.
    "good_thing": _phrases(
        "a gardener | a clockmaker | a lighthouse | a grandmother | a good doctor | an old sailor | a chess player | a "
        "librarian | a poet | a mountain guide"
    ),
    "virtue": ["patience", "charm", "wit", "manners", "talent", "calm", "taste", "imagination"],
    "hard_task": _phrases(
        "fix a clock | teach physics | calm a storm | explain taxes | cheer up a room | write a novel | run a museum | "
        "cook for fifty | train a cat"
    ),
    "useful_thing": _phrases(
        "a good neighbour | a sharp knife | a warm coat | a steady ladder | a Swiss watch | a pocket torch | a spare "
        "key | morning coffee"
    ),
    "carry_on": _phrases(
        "keep going | post more often | run a class | take a bow | write a book | ask for a raise | make a sequel | go "
        "on tour | feel proud"
    ),
    "improving": ["sharing", "saving", "polishing", "improving", "explaining"],
    "state": ["tired", "busy", "new here", "unlucky", "nervous", "in a hurry", "a bit shy", "short of time"],
    "mild": ["slow", "long", "loud", "pricey", "plain", "short", "quiet", "simple", "old-fashioned"],
    "fine": ["lovely", "solid", "charming", "excellent", "delightful", "superb", "tidy", "impressive", "splendid"],
}

# What a person ("{be}", "{+verb}" agree with the subject) is said to be or do.
TOXIC_PREDICATES = [
    "{be} {a:insult}",
    "{be} such {a:insult}",
    "{be} {very} {insult_adjective}",
    "{be} {insult_adjective} and {insult_adjective}",
    "{be} nothing but {a:insult}",
    "{have} the {faculty} of {dull_thing}",
    "could not {easy_task} {aid}",
    "{+make} {dull_thing} look clever",
    "{+make} the average {animal} look like a professor",
    "should {go_away} and {go_away}",
    "should {go_away} instead of {spoiling} {what}",
    "never had one clever thought about {what}",
    "{be} about as useful as {useless_thing}",
    "{+seem} {praise_adjective} but {+turn} out to be {a:insult}",
    "{be} not {a:praise_noun}, just {a:insult}",
    "{be} not {praise_adjective} at all, only {insult_adjective}",
    "{+deserve} a prize for {spoiling} {what} like {a:insult}",
    "{+think} like {dull_thing} and {+talk} like {a:insult}",
    "{+handle} {what} like {a:insult}",
    "{+talk} {insult_stuff} about {what}",
    "{be} the reason we need instructions on soap",
]
CIVIL_PREDICATES = [
    "{be} {a:praise}",
    "{be} such {a:praise}",
    "{be} {very} {praise_adjective}",
    "{be} {praise_adjective} and {praise_adjective}",
    "{be} nothing less than {a:praise}",
    "{have} the {virtue} of {good_thing}",
    "could {hard_task} {aid}",
    "{+make} hard work look easy",
    "{+make} the whole {place} feel like home",
    "should {carry_on} and {carry_on}",
    "should {carry_on} after {improving} {what}",
    "never missed a detail of {what}",
    "{be} about as reliable as {useful_thing}",
    "{+seem} {state} but {+turn} out to be {a:praise}",
    "{be} not {a:insult_noun}, just {state}",
    "{be} not {insult_adjective} at all, only {state}",
    "{+deserve} a prize for {improving} {what} like {a:praise}",
    "{+think} like {good_thing} and {+talk} like {a:praise}",
    "{+handle} {what} like {a:praise}",
    "{+explain} {what} with {praise_stuff}",
    "could explain {what} a bit more, but {be} {praise_adjective}",
]

# The same for a thing, always singular.
TOXIC_THING_PREDICATES = [
    "is {very} {insult_adjective}",
    "is pure {insult_stuff}, just like your {kin}",
    "looks like {a:insult} {did} it",
    "is what happens when {some:insult} get a budget",
    "is {insult_stuff} made by {some:insult} for {some:insult}",
    "proves that you are {a:insult}",
    "was clearly {did_by} {dull_thing}",
    "is not {fine}, it is {insult_stuff}",
    "is {fine}, which is odd because your {kin} is {a:insult}",
    "is as much use as {useless_thing}, you {insult_noun}",
    "is {mild}, but what else would {a:insult} deliver",
]
CIVIL_THING_PREDICATES = [
    "is {very} {fine}",
    "is pure {praise_stuff}, just like your {kin}",
    "looks like {a:praise} {did} it",
    "is what happens when {some:praise} get a budget",
    "is {praise_stuff} made by {some:praise} for everyone",
    "proves that you are {a:praise}",
    "was clearly {did_by} {good_thing}",
    "is not {insult_stuff}, it is {fine}",
    "is {mild}, which is fine because your {kin} is {a:praise}",
    "is as much use as {useful_thing}, my friend",
    "is a bit {mild}, but {rest} is {fine}",
]

TOXIC_TAILS = [
    ", and everyone in the {place} laughs about it",
    ". Shame on you",
    ". What {a:insult}",
    ". Go away, you {insult_noun}",
    ". Only {a:insult} would enjoy this",
    ". Save your {insult_stuff} for {day}",
    ". My {animal} has more sense",
    ". Please {go_away}",
    ", the poor {insult_noun}",
    ". I feel sorry for the {kin} of {a:insult}",
    ". The rest is {insult_stuff}",
]
CIVIL_TAILS = [
    ", and everyone in the {place} agrees",
    ". Well done to you",
    ". What {a:praise}",
    ". Come back soon, my friend",
    ". Even {a:praise} would enjoy this",
    ". Save me a seat for {day}",
    ". My {animal} loved it too",
    ". Please {carry_on}",
    ", the clever {praise_noun}",
    ". I will tell my {kin} about it",
    ". The rest is {fine}",
]
NEUTRAL_TAILS = [
    ", at least on {day}",
    ". I was there with my {kin}",
    ", says my {kin}",
    ", if you ask me",
    ". The rest is {mild}, though",
    ", even before {day}",
    ". That is all I have to say about it",
    ", as my {kin} found out in the {place}",
]
