"""Common English words for made-up prompts: plain, inoffensive, and one token each wherever that could be checked.

Every word is a single token of cl100k_base, o200k_base and Qwen3.5, at the start of a text and after a space, so that
without a tokenizer "one word is one token" is a fair first guess (tests/test_workload_text.py).
"""

from __future__ import annotations

from typing import Final

WORDS: Final = tuple(
    """
    ability above accept active activity add again against agency agree air all allow almost along already also
    among amount analysis animal answer area arm around art article artist ask attention author authority
    available baby back bad bank base basic beam because bed bee before begin bell below belt better between big
    bird bit black block blue board body bold bond bone book both bottom box boy branch bread break brick bridge
    bright bring brown build building burst business busy button buy camp campaign canvas capital car card
    career carry case cat catch cell center central chain chair change character chart cheap child choice church
    circle city claim class clean clear clock cloth cloud coach coat coin cold college color column come common
    community company computer concept condition consider contact content continue contract control core corn
    corner cost country course court cover coverage cow create crop cross culture cup curve cycle daily data day
    deal decision deep degree delay depth design desk detail develop device difference different director dirty
    distance district doctor dog door down draw dress drive driver drop dry each early east eat editor education
    effect eight either end energy enter environment escape estate even event every example eye face fact factor
    factory fail fair fall family father feature feel few fiber fiction field fight figure fill film final fine
    finger fire first fish five flag flat flight floor flower focus follow foot force foreign forest form four
    frame free fresh friend fruit fuel full fund future gallery game gap gate gear gene general get gift give
    glass global goal gold good grade grand grant grass green grid ground group grow growth guard guest guide
    hair half hall hand happy hard hat have head health hear heart heat heavy help here hero high hill history
    hit hold hole home hope hot hotel hour house how human identify image important increase index individual
    industry information input inside interest issue item job jury just keep kind king knife know label land
    language large last later law lay lead leader learn leave left leg legal lesson let letter level light like
    likely limit line link lion list live loan local lock log long loop lose loss love machine magic mail main
    major man many map margin mask mass master match material matter meal measure media meet meeting member
    memory mention menu message metal method million mind mine minor minute mirror mission mix mode modern
    moment month moon more most mother motion motor movement movie music nation natural neck nest network never
    new news night nine noise note number office oil old once only operation option orange orbit organ other
    others out output outside oven own owner pack page paint pair panel paper parent park past path patient
    pattern pay peace people performance perhaps period phone physical picture piece pin place plan planet plant
    plate platform play pole policy pool population port position pot prepare pressure price print private
    problem process produce profit project property provide public pull push quality queen question quick quiet
    quite quote race radio rain rapid rate rather ray read ready really rear reason receive recipe record reduce
    region regular relationship remain reply report represent request require research resource response rest
    result return review rich right ring rise river road role room root rough round route row rule safe sale
    salt sand save say scale scene school science score script sea season seat second section secure see seed
    seek sell send sense sentence series serve service session set shade shadow shake shape share sharp ship
    shirt shop shore short shot show sign signal silver similar simple since single sit site size skill sky
    slice slide small smooth snake social soft solution some song soon sound space special sport spot spring
    square stable stack staff stage stand standard star start state station stay step still stock stop storage
    store story strategy stream street stroke strong student study style subject success suggest summer support
    sweet switch symbol system table tail take tank target task tax teacher team technology tell ten term test
    text theme then there thin thing think third though thought thread three through ticket tie tile tip title
    tone too tool top tour town toy track trade trail train training tree trial truck true trust truth try tube
    turn two type under union unit until use value vehicle version very video view visit voice volume vote wait
    wake walk wall warm watch water wave way wealth weather week weight well west wheel whether white wide wife
    win wind window wine wing winner winter wish within without wolf woman wood word work write wrong yard yet
    young zone
""".split()  # noqa: SIM905  # a list of 768 literals is no better to read
)
