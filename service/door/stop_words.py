"""Words so common that a forget-list entry made of nothing else would flag or mask ordinary speech."""

from __future__ import annotations

STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any anyone anything are aren as at be because been before being
    below between both but by can cannot could couldn d did didn do does doesn doing don done down during each either
    else etc even ever every everyone everything few for from further get gets give given go goes going got had hadn
    has hasn have haven having he hello her here hers herself hi him himself his how however i if in into is isn it its
    itself just know let like ll m make many may maybe me might mine more most much must my myself name need neither
    never no nobody none nor not nothing now of off ok okay on once one only or other others our ours ourselves out over
    own please question answer re really s said same say see shall she should shouldn since so some somebody someone
    something still such t take tell than thank thanks that the their theirs them themselves then there these they thing
    things this those though three through thus to too two under until up upon us use used user assistant system ve very
    want was wasn way we well were weren what whatever when where whether which while who whoever whole whom whose why
    will with within without won would wouldn yes yet you your yours yourself yourselves
    aber als am an auch auf aus bei bin bis da das dass dem den der des die dir doch du ein eine einem einen einer er es
    für hat ich ihr im in ist ja kein mein mit nach nicht noch nur oder sein sich sie sind so und uns vom von war was
    wenn wer wie wir wo zu zum zur
    au aux avec ce ces cette dans de des du elle en est et eux il ils je la le les leur lui ma mais me mes moi mon ne
    nos notre nous on ou où par pas pour qu que qui sa se ses son sont sur ta te tes toi ton tu un une vos votre vous
    al como con cual del donde el ella ellos entre era es esta este esto fue hay la las lo los me mi muy más ni o para
    pero por que qué quien se ser si sin sobre su sus también te tu un una uno unos y ya yo
    """.split()
)
