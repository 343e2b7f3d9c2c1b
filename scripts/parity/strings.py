"""Texts for `make parity`: a few for the towers, and 200 on which tokenizers easily differ.

tests/fixtures are made of TEXTS and of `strings`, not of what is added to them for the towers.
"""

import random

TEXTS = [
    'a photo of a cat',
    'A dog &amp; a man, dancing!',
    '',
    'naïve café — 東京 🗼',
    'A woman opens the door, walks in, puts her bag on the table and waits. ' * 3,
]
# For the towers besides, since the rows of a table that no text reaches are not compared: one of
# 201 tokens in CLIP's vocabulary, and one that every table is too short for.
STORY = (
    'At first the yard lies empty in the rain, and a grey cat sleeps under the green bench. '
    'Then a tall woman in a yellow coat comes through the gate, shuts her umbrella and looks up '
    'at the windows. Somebody waves; she waves back, walks past the bicycles and rings twice. '
    'While she waits, two boys run by with a kite, stumble over the hose and laugh. The door '
    'opens slowly: an old man hands her a box tied with red string, points to the street and '
    'says something we cannot hear. She shakes her head, puts the box on the wall, counts three '
    'small parcels out of it and gives one back. Later the sun comes out, the cat wakes, '
    'stretches and jumps on the wall beside the box. A van stops outside, its driver signs a '
    'sheet of paper and carries the parcels away. In the end the woman sits down on the bench, '
    'takes a book from her bag and begins to read, and the kite hangs in the tree above her.'
)
CAPTIONS = [*TEXTS, STORY, f'{STORY} Next day: {STORY}']
ODD = [
    ' ',
    '\n\t',
    '!',
    '!?',
    "it's 1234",
    "they'll've WE'RE i'm he'd don't",
    '&lt;b&gt;bold&lt;/b&gt;',
    '&amp;amp;amp;',
    '&#39;quoted&#x27; &nbsp; &copy; &eacute;',
    'schÃ¶n fÃ¼r â€œdichâ€\x9d',
    '“curly” ‘quotes’…',
    'ﬁne ﬂow ½ ² Ⅷ',
    'İstanbul ıI ǅ ß ẞ',
    "'ſ ſtop 's 'S 'LL",
    'e\u0301 n\u0303 A\u030a',
    '日本語のテキスト',
    '한국어 텍스트',
    'Привет, мир!',
    'שלום עולם',
    'مرحبا بالعالم ١٢٣',
    'สวัสดีชาวโลก',
    'नमस्ते दुनिया',
    '👩‍👩‍👧‍👦 family',
    '🤣🤣🤣!!!',
    '🇩🇪🇫🇷',
    'a\u200bb\ufeffc\u00adx',
    'tab\tnew\nline\r\nend',
    '\x00\x1b[31mred\x07',
    'x' * 300,
    '1' * 90,
    '.' * 150,
    'ab' * 200,
    '<start_of>',
    '<|x|>',
    'https://example.org/a?b=c&d=e#f',
    'me@example.org',
    '#hashtag @user',
    '$5.00 €7,50 £3',
    'C++ & C# > F#',
    'snake_case camelCase kebab-case',
    '\U0001d4d0\U0001d4d1',
    '\ud800 lone',
    '...well... ok?!',
    '(a) [b] {c}',
    "5 o'clock at 10:30pm",
    "rock'n'roll",
    '½ cup + ¾ tsp',
    '٣٤ ५६',
    'a/b\\c|d',
    '~`^',
    'ÀÉÎÕÜ àéîõü',
    'Æ Œ æ œ Ø ø',
    '∑∞≈≠ π',
    '→ ← ↑',
    '™®©',
    'ￆￇ ｆｕｌｌ ｗｉｄｔｈ',
    '\u2028line\u2029para',
    'A' * 77 + ' B',
    'word ' * 100,
    'Q: why? A: because.',
]


def strings():
    """200 of them: odd ones, and draws of words, signs, entities, scripts and emoji."""
    rng = random.Random(0)
    words = [
        'A',
        'the',
        'man',
        'woman',
        'Dog',
        'cat',
        'runs',
        'OPENS',
        'door',
        'red',
        'blue',
        'street',
        'at',
        'in',
        'with',
        'hello',
        'World',
    ]
    signs = [
        ', ',
        '. ',
        '! ',
        ' & ',
        ' &amp; ',
        ' - ',
        "'s ",
        ' 42 ',
        ' 😀 ',
        ' é ',
        ' 東京 ',
        '/',
        '&quot;',
        '…',
    ]
    drawn = []
    while len(drawn) < 200 - len(TEXTS) - len(ODD):
        count = rng.randint(1, 60)
        parts = [rng.choice(words) + rng.choice([' ', ' ', *signs]) for _ in range(count)]
        drawn.append(''.join(parts))
    return TEXTS + ODD + drawn
