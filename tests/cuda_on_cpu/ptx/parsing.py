"""PTX, as nvcc writes it, read into functions of statements. What the grammar here does not have is an error."""

import re
from typing import NamedTuple

WORD = r"""[.%$\w][\w.$:]*\w|[.%$\w]|"[^"]*"|-\d+"""
TOKEN = re.compile(rf"(?P<skip>\s+|//[^\n]*|/\*.*?\*/)|(?P<word>{WORD})|(?P<sign>.)", re.DOTALL)
SIZES = {f"{kind}{bits}": bits // 8 for kind in "subf" for bits in (8, 16, 32, 64) if f"{kind}{bits}" != "f8"}


class Variable(NamedTuple):
    """A variable or a parameter: `count` values of a type in a state space such as shared."""

    space: str
    type: str
    name: str
    align: int
    count: int = 1
    values: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return SIZES[self.type] * self.count


class Registers(NamedTuple):
    type: str
    names: tuple[str, ...]


class Label(NamedTuple):
    name: str


class Brace(NamedTuple):
    """Of a block inside a function, whose registers are its own."""

    sign: str


class Group(NamedTuple):
    """Several operands in one: `{a, b}`, `(a, b)` or `a|b`."""

    sign: str
    items: tuple[str, ...]


class Address(NamedTuple):
    base: str
    offset: str


Operand = str | Group | Address


class Instruction(NamedTuple):
    line: int
    guard: str  # the register that must be true, or with ! false
    opcode: str
    operands: tuple[Operand, ...]


Statement = Variable | Registers | Label | Brace | Instruction


class Function(NamedTuple):
    """A function with a body; `most_threads` of a block, 0: unlimited."""

    name: str
    is_entry: bool
    returns: tuple[Variable, ...]
    parameters: tuple[Variable, ...]
    most_threads: int
    body: tuple[Statement, ...]


class Module(NamedTuple):
    variables: tuple[Variable, ...]
    functions: tuple[Function, ...]


class Token(NamedTuple):
    text: str
    line: int


def parse(text: str) -> Module:
    """Reads a file of PTX.

    Raises:
        ValueError: it has something else than nvcc writes for csrc/cuda; the message gives the line.
    """
    return Parser(text).module()


class Parser:
    def __init__(self, text: str):
        self.tokens, line = [], 1
        for match in TOKEN.finditer(text):
            if match.lastgroup != "skip":
                self.tokens.append(Token(match[0], line))
            line += match[0].count("\n")
        self.at = 0

    @property
    def next(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        """The next token; one of these, where some are given."""
        token = self.next
        if token == "" or (expected and token not in expected):
            line = self.tokens[min(self.at, len(self.tokens) - 1)].line
            wish = " or ".join(expected) or "more"
            raise ValueError(f"PTX, line {line}: expected {wish}, got {token or 'the end'!r}")
        self.at += 1
        return token

    def skip(self, token: str) -> bool:
        if self.next != token:
            return False
        self.at += 1
        return True

    def module(self) -> Module:
        variables, functions = [], []
        while self.next:
            if self.next in (".version", ".target", ".address_size"):
                self.take()
                self.take()
            elif self.next in (".visible", ".weak"):
                self.take()
            elif self.next in (".entry", ".func"):
                functions.append(self.function())
            else:
                variables.append(self.variable(".shared", ".global", ".const"))
                self.take(";")
        return Module(tuple(variables), tuple(f for f in functions if f is not None))

    def variable(self, *spaces: str) -> Variable:
        space, align, count, values = self.take(*spaces), 1, 1, ()
        while self.next in (".align", ".ptr", ".global"):  # .ptr: what a parameter points to
            if self.take() == ".align":
                align = int(self.take())
        kind, name = self.take(*(f".{kind}" for kind in SIZES)), self.take()
        if self.skip("["):
            count = int(self.take())
            self.take("]")
        if self.skip("="):
            values = self.list_until("{", "}")
        return Variable(space[1:], kind[1:], name, align, count, values)

    def list_until(self, first: str, last: str) -> tuple[str, ...]:
        self.take(first)
        items = []
        while not self.skip(last):
            items.append(self.take())
            if self.next != last:
                self.take(",")
        return tuple(items)

    def parameters(self) -> tuple[Variable, ...]:
        found = []
        if self.skip("("):
            while not self.skip(")"):
                found.append(self.variable(".param"))
                if self.next != ")":
                    self.take(",")
        return tuple(found)

    def function(self) -> Function | None:
        """None: a declaration of one that follows."""
        is_entry = self.take() == ".entry"
        returns = self.parameters()
        name = self.take()
        parameters, most_threads = self.parameters(), 0
        while self.next not in ("{", ";"):
            directive = self.take(".maxntid", ".minnctapersm")
            numbers = [int(self.take())]
            while self.skip(","):
                numbers.append(int(self.take()))
            if directive == ".maxntid":
                most_threads = numbers[0]
        if self.skip(";"):
            return None
        return Function(name, is_entry, returns, parameters, most_threads, self.body())

    def body(self) -> tuple[Statement, ...]:
        self.take("{")
        statements: list[Statement] = []
        depth = 1
        while True:
            if self.next in ("{", "}"):
                depth += 1 if self.next == "{" else -1
                brace = Brace(self.take())
                if depth == 0:
                    return tuple(statements)
                statements.append(brace)
            elif self.skip(".pragma"):
                self.take('"nounroll"')
                self.take(";")
            else:
                statements.append(self.statement())

    def statement(self) -> Statement:
        if self.tokens[self.at + 1 : self.at + 2] and self.tokens[self.at + 1].text == ":":
            label = Label(self.take())
            self.take(":")
            return label
        if self.next == ".reg":
            return self.registers()
        if self.next in (".shared", ".local", ".param"):
            variable = self.variable(self.next)
            self.take(";")
            return variable
        return self.instruction()

    def registers(self) -> Registers:
        self.take(".reg")
        kind, names = self.take(".pred", *(f".{kind}" for kind in SIZES)), []
        while True:
            name = self.take()
            if self.skip("<"):
                names += [f"{name}{k}" for k in range(int(self.take()))]
                self.take(">")
            else:
                names.append(name)
            if self.take(",", ";") == ";":
                return Registers(kind[1:], tuple(names))

    def instruction(self) -> Instruction:
        guard, operands = "", []
        if self.skip("@"):
            guard = ("!" if self.skip("!") else "") + self.take()
        opcode, line = self.take(), self.tokens[self.at - 1].line
        while not self.skip(";"):
            operands.append(self.operand())
            if self.next != ";":
                self.take(",")
        return Instruction(line, guard, opcode, tuple(operands))

    def operand(self) -> Operand:
        if self.next == "{":
            return Group("{", self.list_until("{", "}"))
        if self.next == "(":
            return Group("(", self.list_until("(", ")"))
        if self.skip("["):
            base = self.take()
            offset = self.take() if self.skip("+") else "0"
            self.take("]")
            return Address(base, offset)
        word = self.take()
        return Group("|", (word, self.take())) if self.skip("|") else word
