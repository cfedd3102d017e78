"""Small closed lists of words that tell what a name names. All in mask form."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# before a person's name
TITLES = _words(
    """mr mrs ms miss mx dr doctor prof professor sir dame lord lady saint st sheikh shaikh sultan king queen prince
    princess duke duchess emperor empress earl count countess baron baroness pope cardinal bishop father mother sister
    brother reverend rev rabbi imam mullah president senator governor minister chancellor mayor judge justice general
    gen colonel col major captain capt lieutenant lt sergeant sgt admiral don dona herr frau monsieur madame mme"""
)
# a part after a comma that is a name of its own: "Prince Harry, Duke of Sussex"
RANKS = _words(
    """duke duchess earl count countess baron baroness lord lady prince princess king queen viscount viscountess
    marquess marquis emperor empress archduke"""
)
# after a person's name
GENERATIONS = _words("jr sr junior senior ii iii iv v md phd esq mba dds qc kc obe mbe cbe")
# small words inside a surname
PARTICLES = _words(
    """van von der den de del della delle degli di da das do dos du des la las le les lo bin bint ibn ben abu al el ul
    ter ten zu zur af av y e san santa st mac"""
)
# family names that usually come first in the romanised names of East Asia
FAMILY_FIRST = _words(
    """bai cai cao chang chen cheng chiang chin choi chou chu deng ding dong du fan fang feng gao gu guo han he hong hou
    hsiao hsieh hsu hu huang hwang jang jeon jeong jia jiang jin jung kang kim ko kong kuo kwon lai lee li liang liao
    lim lin liu lu luo ma mao meng moon nguyen oh pan pang park peng pham qian qin qiu ren ryu seo shao shen shi shin
    song su sun tan tang tian tran tsai wang wei wen wu xi xia xiao xie xu xue yan yang yao ye yi yin yoon yu yuan zeng
    zhang zhao zheng zhong zhou zhu zou"""
)
COMPANY_SUFFIXES = _words(
    """inc incorporated corp corporation co company companies ltd limited llc llp plc gmbh ag kg se sa sas sarl spa srl
    bv nv oy ab as kk pty group holdings holding"""
)
ORGANISATION_WORDS = _words(
    """university college institute bank agency ministry department foundation association society committee council
    commission union party church school academy hospital laboratory laboratories labs museum orchestra club team
    federation league airlines airways motors records studios pictures entertainment technologies systems partners
    bureau court army navy police organization organisation consortium network press news"""
)
# first or last word of a place; "Park", "Bay" and "Forest" are surnames as well
PLACE_FIRST = _words("mount mt lake fort port cape isle")
PLACE_LAST = _words(
    """river island islands mountains valley county province peninsula desert ocean sea canyon avenue airport republic
    kingdom palace"""
)
WORK_WORDS = _words("symphony sonata concerto suite saga trilogy chronicles tales diary memoirs adventures")
ARTICLES = _words("the a an le la les el los las der die das il lo un une una ein eine")
# lower-case words inside titles
SMALL_WORDS = _words(
    "of the and in on to for with from at by a an or as into without not is are de la du des und der"
)
# what a description says of its target, by kind; looked for as "a novelist", "was an American city"
DESCRIBED = {
    "person": _words(
        """person man woman actor actress singer songwriter rapper musician composer pianist guitarist drummer writer
        author novelist poet playwright journalist philosopher scientist physicist chemist mathematician biologist
        economist historian politician president senator minister king queen prince princess emperor general soldier
        businessman businesswoman entrepreneur investor lawyer judge model athlete footballer player boxer wrestler
        golfer swimmer cyclist coach director producer comedian host presenter painter sculptor artist architect
        engineer inventor astronaut explorer activist saint prophet monk priest teacher professor doctor nurse chef
        dancer magician criminal killer murderer celebrity personality influencer youtuber streamer billionaire
        founder executive ceo mayor governor daredevil stuntman filmmaker screenwriter employee colleague customer
        patient she he her his"""
    ),
    "work": _words(
        """novel novella book film movie song album single poem play musical opera symphony painting sculpture series
        sitcom show episode game videogame comic manga anime trilogy saga memoir autobiography essay ballad
        documentary story"""
    ),
    "place": _words(
        """city town village country state province region county district river lake mountain island continent
        capital neighbourhood neighborhood peninsula desert sea ocean valley street square suburb municipality"""
    ),
    "organisation": _words(
        """company corporation firm business startup manufacturer retailer bank university college school institute
        organization organisation agency charity foundation association party band group team club league
        conglomerate brand publisher newspaper magazine broadcaster airline church sect army ministry"""
    ),
    "topic": _words("topic subject concept method technique practice procedure process theory synthesis idea"),
    "text": _words("text chapter article document passage speech letter lyrics transcript manuscript"),
    "fact": _words("fact statement claim event date number"),
}
# verbs that make a sentence of a name: a fact
SENTENCE_VERBS = _words("is are was were has have had did does won wrote invented discovered died married owns will")
# words with a capital only because they open a sentence or a line
OPENERS = _words(
    """according after although analyze analyse answer any as at based because before both but by can compare complete
    could define describe detail did discuss do does during each explain extract find following for from generate give
    has have how identify if imagine in is list many most name on once please provide rewrite since summarise summarize
    tell the then these they this those though through to translate under until was were what when where which while
    who whom whose why will with write would american british english french german"""
)
# words that no person's bare name follows
NOT_BEFORE_PEOPLE = _words(
    "the a an this that these those some any every each no our my your his her their its in into on at inside via"
)
# given names and their usual short forms, where these do not begin alike
SAME_NAME = tuple(
    _words(line)
    for line in (
        "robert bob bobby rob",
        "william bill billy will",
        "richard dick rick",
        "james jim jimmy jamie",
        "john jack johnny jon",
        "charles chuck charlie",
        "edward ted ned eddie",
        "theodore ted teddy",
        "henry hank harry hal",
        "anthony tony",
        "elizabeth betty beth liz liza lisa eliza bess betsy",
        "margaret peggy meg maggie daisy greta",
        "mary molly polly",
        "cynthia cindy",
        "catherine katherine kathryn kate katie kathy kitty",
        "susan sue",
        "deborah debbie",
        "barbara babs",
        "dorothy dolly dottie",
        "helen nell ellen",
        "eleanor nell ellie",
        "sarah sally sadie",
        "ann anne anna nancy annie",
        "alexander sasha alex sandy",
        "francis frank",
        "lawrence laurence larry",
        "gerald jerry",
        "jerome jerry",
        "michael mick mike",
        "leonard lenny leo",
        "andrew drew andy",
        "eugene gene",
        "albert bert al",
        "gilbert gil bert",
        "antonio toni",
        "francisco paco pancho",
        "jose pepe",
        "vladimir vova",
        "mikhail misha",
    )
)
