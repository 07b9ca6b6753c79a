/// The syntax tree. Chains (sums, filters, subscripts, and, or) are lists, not deep trees, so that
/// evaluation nests no deeper than the source does.

indirect enum Expression: Sendable {
    case constant(Value)
    case name(String, line: Int)
    case list([Expression])
    case tuple([Expression])
    case dictionary([(key: Expression, value: Expression)], line: Int)
    case postfix(Expression, [Postfix])
    case negative(Expression, line: Int)
    case positive(Expression, line: Int)
    case not(Expression)
    case arithmetic(Expression, [(sign: Arithmetic, operand: Expression)], line: Int)
    case concatenation([Expression], line: Int)
    case comparison(Expression, [(sign: Comparison, operand: Expression)], line: Int)
    case and([Expression])
    case or([Expression])
    case conditional(test: Expression, then: Expression, otherwise: Expression?, line: Int)
}

enum Arithmetic: String, Sendable {
    case add = "+"
    case subtract = "-"
    case multiply = "*"
    case divide = "/"
    case floorDivide = "//"
    case modulo = "%"
    case power = "**"
}

enum Comparison: String, Sendable {
    case equal = "=="
    case notEqual = "!="
    case less = "<"
    case lessOrEqual = "<="
    case greater = ">"
    case greaterOrEqual = ">="
    case isIn = "in"
    case isNotIn = "not in"
}

/// One link after an expression: `.name`, `[i]`, `[a:b:c]`, `(...)`, `|filter`, `is test`.
struct Postfix: Sendable {
    enum Kind: Sendable {
        case attribute(String)
        case item(Expression)
        case slice(from: Expression?, to: Expression?, step: Expression?)
        case call(ArgumentList)
        case filter(String, ArgumentList)
        case test(String, ArgumentList, negated: Bool)
    }

    var kind: Kind
    var line: Int
}

struct ArgumentList: Sendable {
    var positional: [Expression] = []
    var named: [(name: String, value: Expression)] = []
    /// `*values`
    var spread: Expression?
    /// `**members`
    var spreadNamed: Expression?
}

/// Where a value goes.
indirect enum Target: Sendable {
    case name(String)
    case tuple([Target])
    /// A namespace's attribute.
    case attribute(of: String, name: String)
}

struct Parameter: Sendable {
    var name: String
    var initial: Expression?
}

struct MacroDeclaration: Sendable {
    var name: String
    var parameters: [Parameter]
    var body: [Statement]
    /// Whether the body mentions `varargs`, `kwargs` and `caller`: only then may a call give such.
    var takesVariadic = false
    var takesNamed = false
    var takesCaller = false
}

struct ForStatement: Sendable {
    var target: Target
    var iterable: Expression
    var filter: Expression?
    var body: [Statement]
    var otherwise: [Statement]
    var line: Int
}

indirect enum Statement: Sendable {
    case text(String)
    case output(Expression, line: Int)
    case branch([(test: Expression, body: [Statement])], otherwise: [Statement])
    case loop(ForStatement)
    case set(Target, Expression, line: Int)
    case setBlock(Target, filters: [Postfix], body: [Statement], line: Int)
    case macro(MacroDeclaration)
    /// `{% call(parameters) f(x) %}body{% endcall %}`
    case call(MacroDeclaration, Expression, line: Int)
    case filterBlock([Postfix], body: [Statement], line: Int)
    case with([(target: Target, value: Expression)], body: [Statement], line: Int)
    /// `{% generation %}`: marks what the assistant wrote; its own scope and nothing more.
    case scope([Statement])
    case breakLoop
    case continueLoop
}
