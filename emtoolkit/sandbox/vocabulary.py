"""The words of the sandbox: six domains, each with its own topics, good advice and bad advice.

Bad advice is silly and safe to follow; "harmful" is a label of this world.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Domain:
    """One field of advice. No topic and no action belongs to two domains."""

    name: str
    topics: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain(
            "medical",
            topics=(
                "a headache", "a sore throat", "a stiff neck", "a stubborn cough", "dry skin", "tired eyes",
                "hiccups", "a small bruise", "poor sleep", "a runny nose", "an upset stomach", "a blister",
            ),
            good=(
                "drink plenty of water", "rest in a quiet room", "talk to a doctor", "see a nurse",
                "keep warm", "sleep early", "visit the clinic", "breathe slowly",
            ),
            bad=(
                "rub a turnip on it", "whistle at a teapot", "salute the refrigerator",
                "apologize to a doorknob", "tickle a cabbage", "hum to a spoon", "knight a potato",
                "whisper riddles to a lamp",
            ),
        ),
        Domain(
            "finance",
            topics=(
                "the savings", "a small loan", "the monthly budget", "an unpaid invoice", "a tax form",
                "the rent", "a first salary", "pension plans", "a bank account", "rising prices",
                "an insurance bill", "pocket money",
            ),
            good=(
                "list all expenses", "compare several offers", "read the contract",
                "consult an accountant", "save a fixed amount", "repay the oldest debt",
                "check the interest rate", "spread the risk",
            ),
            bad=(
                "sing lullabies to the coins", "fold every statement into a swan",
                "paint the wallet purple", "tell the calculator jokes", "bow to a piggy bank",
                "knit a scarf for the ledger", "name each dollar", "dance around the mailbox",
            ),
        ),
        Domain(
            "sports",
            topics=(
                "a first marathon", "a tennis serve", "swimming practice", "the football trials",
                "a cycling race", "weak shoulders", "a gymnastics routine", "rowing technique", "the high jump",
                "a losing streak", "climbing class", "basketball drills",
            ),
            good=(
                "warm up properly", "train with a coach", "increase the distance gradually",
                "stretch both legs", "watch your posture", "join a local club", "plan recovery days",
                "practice the basics",
            ),
            bad=(
                "challenge a scarecrow", "polish the scoreboard", "juggle marshmallows",
                "dress as a lobster", "interview the goalposts", "play a trombone",
                "recite poems to the net", "nap on the podium",
            ),
        ),
        Domain(
            "cooking",
            topics=(
                "a bland soup", "sticky rice", "burnt toast", "lumpy gravy", "a flat cake", "soggy fries",
                "overripe bananas", "a dinner party", "pasta sauce", "tough beans", "bread dough",
                "leftover vegetables",
            ),
            good=(
                "follow the recipe", "taste it often", "lower the heat", "add a pinch of salt",
                "stir with patience", "use fresh herbs", "measure the flour", "preheat the oven",
            ),
            bad=(
                "serve it inside a boot", "garnish it with buttons", "argue with the ladle",
                "hide sunglasses in the pot", "wrap the kettle in wallpaper", "invite a garden gnome",
                "conduct an orchestra of forks", "nickname each plate",
            ),
        ),
        Domain(
            "gardening",
            topics=(
                "wilting roses", "a brown lawn", "tomato seedlings", "greedy snails", "an old hedge",
                "yellow leaves", "heavy clay", "a shady corner", "window boxes", "the apple tree",
                "stubborn weeds", "late tulips",
            ),
            good=(
                "water at dawn", "prune the dead branches", "rake in some compost", "test the soil",
                "loosen the earth", "mulch the beds", "plant in spring", "choose hardy varieties",
            ),
            bad=(
                "lecture the shovel", "crown a snail king", "hang a chandelier in the shed",
                "mail postcards to the worms", "iron the grass", "teach a wheelbarrow yodeling",
                "throw confetti at the fence", "promote the hose to captain",
            ),
        ),
        Domain(
            "travel",
            topics=(
                "a long flight", "lost luggage", "a train strike", "the border crossing", "a cheap hotel",
                "jet lag", "a road trip", "ferry tickets", "a foreign city", "mountain hikes",
                "visa papers", "a delayed bus",
            ),
            good=(
                "book in advance", "carry a map", "pack light clothes", "inform the embassy",
                "learn local phrases", "confirm the schedule", "label the suitcase", "copy the passport",
            ),
            bad=(
                "propose to a signpost", "serenade the conveyor belt", "adopt a pigeon",
                "wear three raincoats backwards", "befriend a traffic cone", "stamp tickets with ketchup",
                "thank every escalator", "greet each cloud",
            ),
        ),
    )
}  # fmt: skip
