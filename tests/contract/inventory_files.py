"""Strategies for inventory files and limit patterns: what people write, and what nobody should."""

from __future__ import annotations

from hypothesis import strategies as st


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


NAMES = words("""a b c web db gpu gpu01 gpu02 gpu03 all ungrouped x-y _meta x.y 1 h é 机器 localhost
    127.0.0.1 GPU01 children vars""")
RANGES = words("""[1:3] [01:05:2] [a:c] [A:C] [a:C] [C:a] [c:a] [0:0] [:2] [1:] [] [:] [1:2:0] [1:3:-1]
    [a:f:2] [a:c:0] [001:3] [08:11] [3:1] [1-3] [x] [ab:d] [1:2:3:4] [1:b] [a:2] [-1:1] [1:2 [[1:2]
    [1:2]] [1:3][a:b] [09:10:03] [00:02] [1:3:x] [٣:٥] [1:2][1:2]""")
ADDRESSES = words("""10.0.0.1 10.0.0.[1:3] 256.1.1.1 ::1 2001:db8::1 [2001:db8::1] fe80::[a:c] [::1]:22
    [2001:db8::[1:3]]:2222 1:2:3:4:5:6:7:8 [h]:22 [h:1]:2 [a:b]:22 [h[1:2]]:22 ::ffff:10.0.0.1
    [fe80::1%eth0]:22 a::b::c 0:0:0:0:0:0:1.2.3.4 fe80::[08:0c] ::[1:3] [10.0.0.1]:22 1.2.3 1.2.3.4.5
    1:: ::: 1:2 [::ffff:1.2.3.4]:1 [1:2:3:4:5:6::8]:5 [1::2::3]:5 [12345::]:5 [-h]:5 [h_]:5 h.-i:5 -h:5
    ſ[a:b]:5 10.0.0.[1:300]:7""")
PORTS = st.sampled_from(["", "", "", ":22", ":0", ":99999", ":", "::", ":ssh", ":022", ":-1", ":2222:22"])
ODD_HOSTS = words(r"""h|1 h|[1:2] -h h- h_ h..i --- 'q q"r"s '[1:2]' a\ "" h#c #h ;h h;c h,i h=1 = 'a:'
    [ ] h] !h &h ~h * @h $ANSIBLE_VAULT;1.1""") | st.sampled_from(
    [
        *(
            '"q r"',
            "a\\ b",
            "{{ h }}",
            "\ufeffh",
            "\ufeff[g]",
            "h\u00a0i",
            "h\u2028i",
            "h\x0bi",
            "h\x1ci",
            "h\x85i",
        ),
        *(
            "h\u3000",
            "h\ti",
            "h\ri",
            "\u3000h",
            "h\u200b",
            "\x00",
            "h\x00i",
            "' '",
            '" --- "',
            "[1: 3]",
            "'[1: 3]'",
        ),
    ]
)
HOSTS = st.one_of(
    NAMES,
    st.tuples(NAMES, RANGES, PORTS).map("".join),
    st.tuples(NAMES, RANGES, NAMES, RANGES, PORTS).map("".join),
    st.tuples(NAMES, PORTS).map("".join),
    st.tuples(RANGES, NAMES).map("".join),
    st.tuples(ADDRESSES, PORTS).map("".join),
    ODD_HOSTS,
)

KEYS = st.just("") | words("""k k2 a-b ansible_host ansible_port ansible_user ansible_group_priority
    group_names inventory_dir vars 1k é environment ansible_version ansible_check_mode playbook_dir
    ansible_local ansible_facts true""")
LITERALS = st.recursive(
    words(r"""1 -1 0 017 0o17 0x1F 1_000 1e3 1e999 -1e999 .5 1. 1j 1+2j 1e400+1j True true TRUE False
        None null yes ... 10.0.0.1 1.2 'q' "d" b'x' b"\xff" r'a\b' 'a\nb' '\d' "\ud800" f'a' u'é' 'a''b'
        word a=b a==b {{x}} {{1}} {x} {{}} {} [] () set() #c a#b -- --1 +1 1+1 not 1: 'open "open \\ \"
        ~/x $HOME %s * [1, [1 1] {1:2} (1,) (1) 1,2 1, a,b 1;2 lambda __import__('os') é 机 ١ \x31
        '\N{DIGIT 0}' {**{1:2}} [*[1]] {1:1,**{}} -True""")
    | st.just("\x00"),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
        st.tuples(words("1 'a' True None 1.5 1e999 a 1j ... -1"), inner).map(
            lambda pair: f"{{{pair[0]}: {pair[1]}}}"
        ),
        st.tuples(inner, inner).map(" ".join),
        inner.map("({},)".format),
        inner.map("{{{}}}".format),
        inner.map("'{}'".format),
        inner.map('"{}"'.format),
    ),
    max_leaves=4,
)
PRIORITIES = st.sampled_from("1|2|-3|10|'5'|x|None|1.9|[1]|True|1e999||' 7 '|'0x1'|1_0".split("|"))
COMMENTS = st.sampled_from(
    ["", "", "", "", " # note", " #", "#note", " ; note", "  ", "\t", " # it's", ' # "']
)
PAIRS = st.one_of(
    st.tuples(KEYS, LITERALS).map("=".join),
    PRIORITIES.map("ansible_group_priority={}".format),
    st.integers(0, 9).map("k={}".format),
)
HOST_LINES = st.tuples(HOSTS, st.lists(PAIRS, max_size=3), COMMENTS).map(
    lambda parts: " ".join([parts[0], *parts[1]]) + parts[2]
)
VARIABLE_LINES = st.tuples(
    KEYS, st.sampled_from(["=", " = ", "= ", " =", " == "]), LITERALS | PRIORITIES, COMMENTS
).map("".join)
SECTIONS = st.tuples(
    NAMES, st.sampled_from(["", "", "", ":vars", ":children", ":children", ":hosts"]), COMMENTS
).map(lambda parts: f"[{parts[0]}{parts[1]}]{parts[2]}")
ODD_SECTIONS = st.sampled_from(
    "[]|[a b]|[ a]|[a ]|[a]x"
    "|[a:]|[a:b:c]|[a:vars|a]|[a:childen]|[a] ; c|[a] k=1|[a]]|[[a]]|[a:vars]#c|[a:VARS]"
    "|[é:vars]|[a\u00a0b]|[a/b]|[a=b]|[a#b]|[1:3]|[a:c]|[a:é]|[a]\u3000# c|[a]\t|[a\u200bb]".split("|")
)
BLANK = st.sampled_from(["", "   ", "# comment", "; comment", "  # indented", "\t;x", "#", "\x0c", "\x1c"])
ANY_LINES = st.one_of(
    SECTIONS,
    SECTIONS,
    HOST_LINES,
    HOST_LINES,
    VARIABLE_LINES,
    NAMES,
    ODD_SECTIONS,
    BLANK,
    st.text(st.sampled_from("ab[]:=#;'\"\\ 1-.,{}()|\t"), max_size=12),
)

# Groups in the order of the alphabet, children only downwards, every group declared: mostly accepted.
GROUPS = words("a b c d e web gpu ungrouped all")
PLAIN_HOSTS = words(
    "h1 h2 gpu[01:03] gpu[1:9:4] n[a:c] web 10.0.0.1 a h1:2222 localhost gpu01 ungrouped all ::1"
)
PLAIN_VALUES = words("1 2.5 True None 'q' [1,2] {1:2} word 10.0.0.1 1,2 b'x' (1,) no {{v}}")
PLAIN_PAIRS = st.tuples(words("k k2 ansible_port ansible_host"), PLAIN_VALUES).map("=".join)
HOST_BLOCKS = st.tuples(
    GROUPS,
    st.lists(st.tuples(PLAIN_HOSTS, st.lists(PLAIN_PAIRS, max_size=2), COMMENTS), max_size=4),
).map(lambda block: [f"[{block[0]}]", *(" ".join([host, *pairs]) + note for host, pairs, note in block[1])])
TREES = st.tuples(words("a b c d"), st.lists(words("b c d e web gpu"), max_size=3)).map(
    lambda block: [f"[{block[0]}:children]", *(child for child in block[1] if child > block[0])]
)
ODD_TREES = st.tuples(GROUPS, st.lists(GROUPS, max_size=3)).map(
    lambda block: [f"[{block[0]}:children]", *block[1]]
)
VARIABLE_BLOCKS = st.tuples(
    GROUPS,
    st.lists(
        st.tuples(words("k k2 k3"), st.sampled_from(["=", " = "]), PLAIN_VALUES).map("".join), max_size=2
    ),
    st.lists(st.integers(-2, 12).map("ansible_group_priority={}".format), max_size=1),
).map(lambda block: [f"[{block[0]}:vars]", *block[1], *block[2]])


def lines_of(blocks: st.SearchStrategy[list[str]], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(blocks, max_size=most).map(lambda found: [line for block in found for line in block])


DECLARED = [f"[{group}]" for group in "a b c d e web gpu".split()]
WELL_FORMED = lines_of(st.one_of(HOST_BLOCKS, HOST_BLOCKS, TREES, VARIABLE_BLOCKS), 8).map(
    lambda found: found + DECLARED
)
TANGLED = lines_of(st.one_of(HOST_BLOCKS, TREES, ODD_TREES, VARIABLE_BLOCKS), 8).map(
    lambda found: found + DECLARED
)
MIXED = st.tuples(lines_of(HOST_BLOCKS | TREES | VARIABLE_BLOCKS, 3), st.lists(ANY_LINES, max_size=2)).map(
    lambda parts: DECLARED + parts[0] + parts[1]
)
ONE_VALUE = st.tuples(
    st.sampled_from(["[a:vars]\nk = {}\n[a]\nh", "h k={}", 'h k="{}"', "h k='{}'"]), LITERALS
).map(lambda parts: [parts[0].format(parts[1])])
FILES = st.tuples(
    st.sampled_from(["", "", "", "", "", "\ufeff", "\n", "#!/bin/sh\n", "$ANSIBLE_VAULT;1.1;AES256\n"]),
    st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\u2028"]),
    st.one_of(
        WELL_FORMED,
        WELL_FORMED,
        TANGLED,
        MIXED,
        st.lists(ANY_LINES, max_size=6),
        st.lists(HOST_LINES, min_size=1, max_size=1),
        ONE_VALUE,
    ),
).map(lambda parts: parts[0] + parts[1].join(parts[2]))

PATTERN_WORDS = words("""all * a b c d web gpu gpu* gpu0? h1 h2 h* gpu01 n[ab] n[!a] gpu[1:2] nope
    ungrouped localhost 127.0.0.1 ::1 10.0.0.1 10.* ~h[12] ~gpu.* ~( ~ [ ] gp[u a[0] a[-1] a[1] a[0:1]
    a[1:] a[0:0] a[1:0] a[99] a[-99] a[0-1] all[0] all[1:2] *[0] h1[0] nope* é @x a[1:2 [a]* [[a]* 1:2
    h1:2222 2001:db8::1 fe80::[a:c] [::1] [0] ~a[0] a[0][0] A localhost[0] all[5:1] gpu[0] gpu[-1] d[0]
    e[0]""") | st.just("")
PLAIN_PATTERNS = words(
    "all * a b c d e gpu web h1 h2 gpu* n* a[0] a[0:1] all[1:3] gpu[-1] ~h.* h? 10.* localhost"
)
PATTERNS = st.tuples(
    st.sampled_from([":", ",", ", ", " "]),
    st.lists(
        st.tuples(st.sampled_from(["", "", "!", "&"]), PLAIN_PATTERNS | PATTERN_WORDS).map("".join),
        min_size=1,
        max_size=3,
    ),
).map(lambda parts: parts[0].join(parts[1]))
