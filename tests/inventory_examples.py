"""Small inventories, each with the one thing that is easily read otherwise than Ansible reads it.

The unit tests hold our reader to the results written here, the contract tests hold these results to Ansible.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Example(NamedTuple):
    """What a file means: variables of the listed hosts, members of the groups; None where it is refused."""

    text: str
    hosts: dict[str, dict[str, Any]] | None
    groups: dict[str, list[str]] = {}  # noqa: RUF012 - never changed


def value(text: str, expected: Any) -> Example:
    return Example(f"[a:vars]\nk = {text}\n[a]\nh\n", {"h": {"k": expected}}, {"a": ["h"]})


def hosts(line: str, *names: str, **variables: Any) -> Example:
    groups = {"ungrouped": list(names)} if names else {}
    return Example(line, dict.fromkeys(names, variables), groups)


def refused(text: str) -> Example:
    return Example(text, None)


EXAMPLES: dict[str, Example] = {
    "an empty file has no hosts": hosts(""),
    "hosts before any section are ungrouped": hosts("h1\nh2\n", "h1", "h2"),
    "a line may begin with blanks": hosts("  h1", "h1"),
    "lines starting with a hash or a semicolon are comments": hosts("# h1\n; h2\n  # h3\nh4", "h4"),
    "a hash ends a host line even inside a word": Example(
        "h1#x k=1\nh2 k=1#x", {"h1": {}, "h2": {"k": 1}}, {"ungrouped": ["h1", "h2"]}
    ),
    "a semicolon does not end a line": hosts("h1;x", "h1;x"),
    "carriage returns end lines": hosts("h1\r\nh2\rh3", "h1", "h2", "h3"),
    "a form feed and a Unicode line separator end lines, too": hosts("h1\x0ch2\u2028h3", "h1", "h2", "h3"),
    "a byte order mark belongs to the first word": hosts("\ufeffh1", "\ufeffh1"),
    "a byte order mark before a section is an error": refused("\ufeff[a]\nh1"),
    "a byte that is no UTF-8 is fine in a comment": hosts("# \udcff\nh1 # \udcff", "h1"),
    "names may be in any script": hosts("机器[1:2]", "机器1", "机器2"),
    # Ranges
    "a range includes its end": hosts("gpu[1:3]", "gpu1", "gpu2", "gpu3"),
    "a range with a step counts like Ansible": hosts("gpu[01:20:5]", "gpu01", "gpu06", "gpu11", "gpu16"),
    "a leading zero fixes the width": hosts("gpu[08:11]", "gpu08", "gpu09", "gpu10", "gpu11"),
    "a single zero fixes no width": hosts("gpu[0:10:5]", "gpu0", "gpu5", "gpu10"),
    "letters are a range": hosts("n[a:f:2]", "na", "nc", "ne"),
    "capital letters come after small ones": hosts("n[z:B]", "nz", "nA", "nB"),
    "letters cannot count down": refused("n[c:a]"),
    "numbers that count down name nobody": hosts("n[3:1]"),
    "a negative step counts down and stops before the end": hosts("n[3:1:-1]", "n3"),
    "a range may lack its beginning": hosts("n[:2]", "n0", "n1", "n2"),
    "a range may not lack its end": refused("n[1:]"),
    "a step of nothing is refused": refused("n[1:3:0]"),
    "a range of letters and numbers is refused": refused("n[a:3]"),
    "widths must agree": refused("n[01:3]"),
    "a single number is no range": refused("n[1]"),
    "brackets must be balanced": refused("n[1:3"),
    "a bar beside a range is refused": refused("n|[1:3]"),
    "several ranges vary from the right": hosts("r[1:2]n[a:b]", "r1na", "r1nb", "r2na", "r2nb"),
    "part of the alphabet is as good as its first letter": hosts("n[ab:d]", "na", "nb", "nc", "nd"),
    # Ports and addresses
    "a port becomes ansible_port": hosts("h:2222", "h", ansible_port=2222),
    "a port counts for all of a range": hosts("h[1:2]:22", "h1", "h2", ansible_port=22),
    "port zero is no port": hosts("h:0", "h"),
    "a port counts only where the host is named first": hosts("h\nh:22", "h"),
    "a variable wins over the port": hosts("h:22 ansible_port=23", "h", ansible_port=23),
    "a colon without a port is refused": refused("h:"),
    "what is no port is part of the name": hosts("h:ssh", "h:ssh"),
    "IPv6 with a port needs brackets": hosts("[2001:db8::1]:22", "2001:db8::1", ansible_port=22),
    "IPv6 without a port has none": hosts("2001:db8::1", "2001:db8::1"),
    "IPv6 in brackets without a port is taken for a range": refused("[2001:db8::1]"),
    "an address that is none keeps its port in the name": hosts("-h:22", "-h:22"),
    "a name in brackets may have a port, too": hosts("[h]:22", "h", ansible_port=22),
    "the inner port wins": hosts("[h:1]:2", "h", ansible_port=1),
    "addresses have ranges": hosts("10.0.0.[9:10]:22", "10.0.0.9", "10.0.0.10", ansible_port=22),
    # Words
    "quotes keep words together": hosts('"h 1" k="a b"', "h 1", k="a b"),
    "a backslash escapes": hosts("h\\ 1 k=\\'x\\'", "h 1", k="x"),
    "an open quote is refused": refused("h k='a"),
    "a word without an equals sign is refused": refused("h k = 1"),
    "a second host on a line is refused": refused("h1 h2"),
    "the value is all after the first equals sign": hosts("h k=a=b", "h", k="a=b"),
    "a key may be empty": Example("h =1", {"h": {"": 1}}, {"ungrouped": ["h"]}),
    "the last of two values wins": hosts("h k=1 k=2", "h", k=2),
    "an empty value is text": hosts("h k=", "h", k=""),
    "an empty name is refused": refused('""'),
    "three dashes are YAML": refused("---"),
    # Types
    "a number is a number": value("1", 1),
    "a leading zero makes text": value("017", "017"),
    "an octal number is a number": value("0o17", 15),
    "underscores group digits": value("1_000", 1000),
    "a fraction is a fraction": value("1.0", 1.0),
    "an overflowing number is infinite": value("1e999", float("inf")),
    "True is a truth value": value("True", True),
    "true is text": value("true", "true"),
    "None is nothing": value("None", None),
    "quotes make text below vars": value("'1'", "1"),
    "adjacent strings are joined": value("'a' 'b'", "ab"),
    "a tuple becomes a list": value("(1, (2,))", [1, [2]]),
    "numbers with commas become a list": value("1,2", [1, 2]),
    "a set becomes a list": value("{1}", [1]),
    "keys of a dictionary become text": value("{1: 2, None: 3, True: 4}", {"1": 4, "null": 3}),
    "three dots are text": value("...", "..."),
    "a complex number is text": value("1+2j", "(1+2j)"),
    "bytes are marked as unsafe": value("b'x'", {"__ansible_unsafe": "x"}),
    "bytes below a list are marked, too": value("[b'x']", [{"__ansible_unsafe": "x"}]),
    "a template is text": value("{{ other }}", "{{ other }}"),
    "a template with a number is a set of a set and refused": refused("[a:vars]\nk = {{ 1 }}\n[a]\nh"),
    "empty braces in braces are refused": refused("[a:vars]\nk = {{}}\n[a]\nh"),
    "a complex key is refused": refused("[a:vars]\nk = {1j: 1}\n[a]\nh"),
    "a comment after a literal is dropped below vars": value("1 # one", 1),
    "a comment after text stays below vars": value("word # one", "word # one"),
    "a lone surrogate is shown as a question mark": value("'\\ud800'", "?"),
    "an unknown escape stays": value("'\\d'", "\\d"),
    "on a host line the shell takes the quotes first": hosts("h k='1' l=\"'1'\"", "h", k=1, l="1"),
    "words in brackets stay text once the quotes are gone": hosts("h k=['a','b']", "h", k="[a,b]"),
    # Groups
    "a group is listed with its hosts": Example("[a]\nh", {"h": {}}, {"a": ["h"]}),
    "a section may come twice": Example(
        "[a]\nh1\n[b]\nh2\n[a]\nh3", {"h1": {}, "h2": {}, "h3": {}}, {"a": ["h1", "h3"], "b": ["h2"]}
    ),
    "a host named twice merges": Example(
        "[a]\nh k=1 l=1\n[b]\nh k=2", {"h": {"k": 2, "l": 1}}, {"a": ["h"], "b": ["h"]}
    ),
    "a grouped host leaves ungrouped": Example("h\n[a]\nh", {"h": {}}, {"a": ["h"]}),
    "children may come before their group": Example("[p:children]\nc\n[c]\nh", {"h": {}}, {"c": ["h"]}),
    "variables may come before their group": Example("[a:vars]\nk=1\n[a]\nh", {"h": {"k": 1}}, {"a": ["h"]}),
    "a children section declares its group": Example(
        "[p:vars]\nk=1\n[p:children]\nc\n[c]\nh", {"h": {"k": 1}}, {"c": ["h"]}
    ),
    "variables alone declare no group": refused("[a:vars]\nk=1"),
    "a child must be declared": refused("[p:children]\nc"),
    "a child with variables alone is not declared": refused("[p:children]\nc\n[c:vars]\nk=1"),
    "a hosts suffix is the same as none": Example("[a:hosts]\nh", {"h": {}}, {"a": ["h"]}),
    "another suffix is refused": refused("[a:childen]\nh"),
    "a space in a section is refused": refused("[a b]\nh"),
    "a comment may follow a section": Example("[a] # x\nh", {"h": {}}, {"a": ["h"]}),
    "a semicolon may not follow a section": refused("[a] ; x\nh"),
    "odd characters in a group name are kept": Example("[a-b/c.d]\nh", {"h": {}}, {"a-b/c.d": ["h"]}),
    "all may have hosts and variables": Example(
        "[all]\nh\n[all:vars]\nk=1", {"h": {"k": 1}}, {"ungrouped": ["h"]}
    ),
    "all is nobody's child": refused("[a:children]\nall"),
    "a group is not its own child": refused("[a:children]\na"),
    "groups make no loop": refused("[a:children]\nb\n[b:children]\na"),
    "a line below vars needs an equals sign": refused("[a]\nh\n[a:vars]\nk"),
    "a line below children is one name": refused("[a:children]\nb c\n[b]\n[c]"),
    "a group without members is not listed": Example("[a]\n[b]\nh", {"h": {}}, {"b": ["h"]}),
    "a group named _meta is lost in the listing": Example("[_meta]\nh", {"h": {}}),
    # Precedence
    "a child wins over its parent": Example(
        "[p:children]\nc\n[c]\nh\n[c:vars]\nk=c\n[p:vars]\nk=p", {"h": {"k": "c"}}, {"c": ["h"]}
    ),
    "of equals the later in the alphabet wins": Example(
        "[b]\nh\n[a]\nh\n[a:vars]\nk=a\n[b:vars]\nk=b", {"h": {"k": "b"}}, {"a": ["h"], "b": ["h"]}
    ),
    "a priority wins over the alphabet": Example(
        "[a]\nh\n[b]\nh\n[a:vars]\nk=a\nansible_group_priority=2\n[b:vars]\nk=b",
        {"h": {"k": "a"}},
        {"a": ["h"], "b": ["h"]},
    ),
    "depth wins over a priority": Example(
        "[p:children]\nc\n[c]\nh\n[c:vars]\nk=c\n[p:vars]\nk=p\nansible_group_priority=9",
        {"h": {"k": "c"}},
        {"c": ["h"]},
    ),
    "a priority must be a number": refused("[a]\nh\n[a:vars]\nansible_group_priority=high"),
    "a priority of a host is a variable like any other": hosts(
        "h ansible_group_priority=x", "h", ansible_group_priority="x"
    ),
    "of two priorities on the line of a host named as a group the last counts": Example(
        "all ansible_group_priority=x ansible_group_priority=1", {"all": {}}, {"ungrouped": ["all"]}
    ),
    "the host wins over its groups": Example("[a]\nh k=h\n[a:vars]\nk=a", {"h": {"k": "h"}}, {"a": ["h"]}),
    "names that Ansible keeps for itself are dropped": hosts(
        "h group_names=1 inventory_dir=2 playbook_dir=3 k=4", "h", k=4
    ),
    # One name, two things
    "variables of a host with the name of a group go to the group": Example(
        "[h]\nx\n[a]\nh k=1", {"h": {}, "x": {"k": 1}}, {"h": ["x"], "a": ["h"]}
    ),
    "a host named all hides the others": Example("all\nh", {"all": {}}, {"ungrouped": ["all"]}),
    "a host of ungrouped vanishes when that is a child": Example("h\n[a:children]\nungrouped", {}),
    "a lonely host with the name of a group makes that ungrouped": Example(
        "[a]\nx\n[all]\na", {"a": {}, "x": {}}, {"a": ["x"]}
    ),
}
