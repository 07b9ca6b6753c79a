import ServingTypes

/// Recursive descent in the order of Jinja's own parser. Nesting is bounded.
struct TemplateParser {
    private let tokens: [Token]
    private var at = 0
    private var depth = 0
    /// Names read since the innermost macro began.
    private var namesRead: Set<String> = []

    init(tokens: [Token]) { self.tokens = tokens }

    mutating func template() throws(ServingError) -> [Statement] {
        let body = try statements(until: [])
        guard current.kind == .end else { throw failure("unexpected end of a block") }
        return body
    }

    // MARK: Tokens

    private var current: Token { tokens[at] }

    private var following: Token { tokens[min(at + 1, tokens.count - 1)] }

    private mutating func advance() {
        if at < tokens.count - 1 { at += 1 }
    }

    private func failure(_ message: String) -> ServingError { templateError(message, line: current.line) }

    private var shown: String {
        switch current.kind {
        case .data: "text"
        case .outputBegin: "'{{'"
        case .outputEnd: "'}}'"
        case .blockBegin: "'{%'"
        case .blockEnd: "'%}'"
        case .name, .symbol: "'\(current.text)'"
        case .string: "a string"
        case .integer, .float: "a number"
        case .end: "the end of the template"
        }
    }

    private mutating func skip(symbol: String) -> Bool {
        guard current.isSymbol(symbol) else { return false }
        advance()
        return true
    }

    private mutating func skip(name: String) -> Bool {
        guard current.isName(name) else { return false }
        advance()
        return true
    }

    private mutating func need(symbol: String) throws(ServingError) {
        guard skip(symbol: symbol) else { throw failure("expected '\(symbol)', not \(shown)") }
    }

    private mutating func need(_ kind: Token.Kind, _ name: String) throws(ServingError) {
        guard current.kind == kind else { throw failure("expected \(name), not \(shown)") }
        advance()
    }

    private mutating func needName() throws(ServingError) -> String {
        guard current.kind == .name else { throw failure("expected a name, not \(shown)") }
        defer { advance() }
        return current.text
    }

    private mutating func enter() throws(ServingError) {
        depth += 1
        guard depth <= SyntaxLimits.nestingMax else {
            throw failure("nested deeper than \(SyntaxLimits.nestingMax)")
        }
    }

    // MARK: Statements

    /// Up to a block tag with one of these names, which stays current (after its `{%`).
    private mutating func statements(until ends: [String]) throws(ServingError) -> [Statement] {
        try enter()
        defer { depth -= 1 }
        var body: [Statement] = []
        while true {
            let line = current.line
            switch current.kind {
            case .data:
                body.append(.text(current.text))
                advance()
            case .outputBegin:
                advance()
                body.append(.output(try tuple(), line: line))
                try need(.outputEnd, "'}}'")
            case .blockBegin:
                advance()
                if current.kind == .name, ends.contains(current.text) { return body }
                if let statement = try statement(ends) { body.append(statement) }
                try need(.blockEnd, "'%}'")
            case .end:
                guard ends.isEmpty else {
                    throw failure("the template ends where \(ends.joined(separator: " or ")) should be")
                }
                return body
            case .outputEnd, .blockEnd, .name, .string, .integer, .float, .symbol:
                throw failure("unexpected \(shown)")
            }
        }
    }

    /// `%}`, a body, `{% end`; the end's name is consumed and returned.
    private mutating func block(until ends: [String]) throws(ServingError) -> (body: [Statement], end: String) {
        _ = skip(symbol: ":")
        try need(.blockEnd, "'%}'")
        let body = try statements(until: ends)
        return (body, try needName())
    }

    private mutating func statement(_ ends: [String]) throws(ServingError) -> Statement? {
        let line = current.line
        let keyword = try needName()
        switch keyword {
        case "for": return .loop(try forStatement(line: line))
        case "if": return try ifStatement()
        case "set": return try setStatement(line: line)
        case "macro": return .macro(try macro(name: needName(), end: "endmacro"))
        case "call": return try callStatement(line: line)
        case "filter":
            let filters = try filterChain(startsInline: true)
            return .filterBlock(filters, body: try block(until: ["endfilter"]).body, line: line)
        case "with": return try withStatement(line: line)
        case "generation": return .scope(try block(until: ["endgeneration"]).body)
        case "break": return .breakLoop
        case "continue": return .continueLoop
        case "print": return .output(try tuple(), line: line)
        default:
            let expected = ends.isEmpty ? "" : ", expected \(ends.joined(separator: " or "))"
            throw templateError("unknown tag '\(keyword)'\(expected)", line: line)
        }
    }

    private mutating func forStatement(line: Int) throws(ServingError) -> ForStatement {
        let target = try target()
        guard skip(name: "in") else { throw failure("expected 'in', not \(shown)") }
        let iterable = try tuple(withConditional: false)
        var filter: Expression?
        if skip(name: "if") { filter = try expression() }
        if current.isName("recursive") { throw failure("recursive loops are not supported") }
        let (body, end) = try block(until: ["endfor", "else"])
        let otherwise = end == "else" ? try block(until: ["endfor"]).body : []
        return ForStatement(
            target: target, iterable: iterable, filter: filter, body: body, otherwise: otherwise, line: line)
    }

    private mutating func ifStatement() throws(ServingError) -> Statement {
        var branches: [(test: Expression, body: [Statement])] = []
        while true {
            let test = try tuple(withConditional: false)
            let (body, end) = try block(until: ["elif", "else", "endif"])
            branches.append((test, body))
            switch end {
            case "elif": continue
            case "else": return .branch(branches, otherwise: try block(until: ["endif"]).body)
            default: return .branch(branches, otherwise: [])
            }
        }
    }

    private mutating func setStatement(line: Int) throws(ServingError) -> Statement {
        let target = try target(allowsAttribute: true)
        if skip(symbol: "=") { return .set(target, try tuple(), line: line) }
        let filters = try filterChain(startsInline: false)
        return .setBlock(target, filters: filters, body: try block(until: ["endset"]).body, line: line)
    }

    private mutating func withStatement(line: Int) throws(ServingError) -> Statement {
        var bindings: [(target: Target, value: Expression)] = []
        while current.kind != .blockEnd {
            if !bindings.isEmpty { try need(symbol: ",") }
            let target = try primaryTarget(allowsAttribute: false)
            try need(symbol: "=")
            bindings.append((target, try expression()))
        }
        return .with(bindings, body: try block(until: ["endwith"]).body, line: line)
    }

    private mutating func callStatement(line: Int) throws(ServingError) -> Statement {
        var parameters: [Parameter] = []
        if current.isSymbol("(") { parameters = try signature() }
        let call = try expression()
        guard case .postfix(_, let links) = call, case .call? = links.last?.kind else {
            throw templateError("expected a call", line: line)
        }
        return .call(try macroBody(name: "caller", parameters: parameters, end: "endcall"), call, line: line)
    }

    private mutating func macro(name: String, end: String) throws(ServingError) -> MacroDeclaration {
        try macroBody(name: name, parameters: try signature(), end: end)
    }

    private mutating func macroBody(
        name: String, parameters: [Parameter], end: String
    ) throws(ServingError) -> MacroDeclaration {
        let outerNames = namesRead
        namesRead = []
        defer { namesRead.formUnion(outerNames) }
        let body = try block(until: [end]).body
        return MacroDeclaration(
            name: name, parameters: parameters, body: body, takesVariadic: namesRead.contains("varargs"),
            takesNamed: namesRead.contains("kwargs"), takesCaller: namesRead.contains("caller"))
    }

    private mutating func signature() throws(ServingError) -> [Parameter] {
        try need(symbol: "(")
        var parameters: [Parameter] = []
        while !current.isSymbol(")") {
            if !parameters.isEmpty { try need(symbol: ",") }
            let name = try needName()
            var parameter = Parameter(name: name, initial: nil)
            if skip(symbol: "=") {
                parameter.initial = try expression()
            } else if parameters.last?.initial != nil {
                throw failure("a parameter without default after one with a default")
            }
            parameters.append(parameter)
        }
        try need(symbol: ")")
        return parameters
    }

    private mutating func target(allowsAttribute: Bool = false) throws(ServingError) -> Target {
        var targets = [try primaryTarget(allowsAttribute: allowsAttribute)]
        var isTuple = false
        while skip(symbol: ",") {
            isTuple = true
            guard current.kind == .name && !current.isName("in") || current.isSymbol("(") else { break }
            targets.append(try primaryTarget(allowsAttribute: allowsAttribute))
        }
        return isTuple ? .tuple(targets) : targets[0]
    }

    private mutating func primaryTarget(allowsAttribute: Bool) throws(ServingError) -> Target {
        try enter()
        defer { depth -= 1 }
        if skip(symbol: "(") {
            let inner = try target(allowsAttribute: allowsAttribute)
            try need(symbol: ")")
            return inner
        }
        let name = try needName()
        guard !["true", "false", "none", "True", "False", "None"].contains(name) else {
            throw failure("cannot assign to '\(name)'")
        }
        if allowsAttribute, skip(symbol: ".") { return .attribute(of: name, name: try needName()) }
        return .name(name)
    }

    // MARK: Expressions

    private mutating func tuple(
        withConditional: Bool = true, inParentheses: Bool = false
    ) throws(ServingError) -> Expression {
        var elements: [Expression] = []
        var isTuple = false
        while !isTupleEnd {
            elements.append(withConditional ? try expression() : try or())
            guard skip(symbol: ",") else { break }
            isTuple = true
        }
        if !isTuple, let only = elements.first { return only }
        guard isTuple || inParentheses else { throw failure("expected an expression, not \(shown)") }
        return .tuple(elements)
    }

    private var isTupleEnd: Bool {
        current.kind == .outputEnd || current.kind == .blockEnd || current.isSymbol(")") || current.kind == .end
    }

    private mutating func expression() throws(ServingError) -> Expression {
        let outerDepth = depth
        defer { depth = outerDepth }
        try enter()
        var value = try or()
        while current.isName("if") {
            let line = current.line
            advance()
            let test = try or()
            let otherwise = skip(name: "else") ? try expression() : nil
            value = .conditional(test: test, then: value, otherwise: otherwise, line: line)
            // `a if b if c` nests to the left: each link counts as one level.
            try enter()
        }
        return value
    }

    private mutating func or() throws(ServingError) -> Expression {
        var operands = [try and()]
        while skip(name: "or") { operands.append(try and()) }
        return operands.count == 1 ? operands[0] : .or(operands)
    }

    private mutating func and() throws(ServingError) -> Expression {
        var operands = [try not()]
        while skip(name: "and") { operands.append(try not()) }
        return operands.count == 1 ? operands[0] : .and(operands)
    }

    private mutating func not() throws(ServingError) -> Expression {
        guard skip(name: "not") else { return try comparison() }
        try enter()
        defer { depth -= 1 }
        return .not(try not())
    }

    private mutating func comparison() throws(ServingError) -> Expression {
        let line = current.line
        let first = try sum()
        var rest: [(sign: Comparison, operand: Expression)] = []
        while true {
            if current.kind == .symbol, let comparison = Comparison(rawValue: current.text) {
                advance()
                rest.append((comparison, try sum()))
            } else if skip(name: "in") {
                rest.append((.isIn, try sum()))
            } else if current.isName("not"), following.isName("in") {
                advance()
                advance()
                rest.append((.isNotIn, try sum()))
            } else {
                return rest.isEmpty ? first : .comparison(first, rest, line: line)
            }
        }
    }

    private mutating func sum() throws(ServingError) -> Expression {
        let line = current.line
        let first = try concatenation()
        var rest: [(sign: Arithmetic, operand: Expression)] = []
        while current.isSymbol("+") || current.isSymbol("-") {
            let sign: Arithmetic = current.text == "+" ? .add : .subtract
            advance()
            rest.append((sign, try concatenation()))
        }
        return rest.isEmpty ? first : .arithmetic(first, rest, line: line)
    }

    private mutating func concatenation() throws(ServingError) -> Expression {
        let line = current.line
        var operands = [try product()]
        while skip(symbol: "~") { operands.append(try product()) }
        return operands.count == 1 ? operands[0] : .concatenation(operands, line: line)
    }

    private mutating func product() throws(ServingError) -> Expression {
        let line = current.line
        let first = try power()
        var rest: [(sign: Arithmetic, operand: Expression)] = []
        while current.kind == .symbol, ["*", "/", "//", "%"].contains(current.text),
            let sign = Arithmetic(rawValue: current.text)
        {
            advance()
            rest.append((sign, try power()))
        }
        return rest.isEmpty ? first : .arithmetic(first, rest, line: line)
    }

    private mutating func power() throws(ServingError) -> Expression {
        let line = current.line
        let first = try unary(withFilters: true)
        var rest: [(sign: Arithmetic, operand: Expression)] = []
        while skip(symbol: "**") { rest.append((.power, try unary(withFilters: true))) }
        return rest.isEmpty ? first : .arithmetic(first, rest, line: line)
    }

    private mutating func unary(withFilters: Bool) throws(ServingError) -> Expression {
        try enter()
        defer { depth -= 1 }
        let line = current.line
        let base: Expression
        if skip(symbol: "-") {
            base = .negative(try unary(withFilters: false), line: line)
        } else if skip(symbol: "+") {
            base = .positive(try unary(withFilters: false), line: line)
        } else {
            base = try primary()
        }
        let links = try postfixes(withFilters: withFilters)
        return links.isEmpty ? base : .postfix(base, links)
    }

    private mutating func primary() throws(ServingError) -> Expression {
        let token = current
        switch token.kind {
        case .name:
            advance()
            return named(token)
        case .string:
            var text = ""
            while current.kind == .string {
                text += current.text
                advance()
            }
            return .constant(.string(text))
        case .integer(let value):
            advance()
            return .constant(.integer(value))
        case .float(let value):
            advance()
            return .constant(.float(value))
        case .symbol:
            return try bracketed()
        case .data, .outputBegin, .outputEnd, .blockBegin, .blockEnd, .end:
            throw failure("unexpected \(shown)")
        }
    }

    private mutating func named(_ token: Token) -> Expression {
        switch token.text {
        case "true", "True": return .constant(.bool(true))
        case "false", "False": return .constant(.bool(false))
        case "none", "None": return .constant(.none)
        default:
            namesRead.insert(token.text)
            return .name(token.text, line: token.line)
        }
    }

    private mutating func bracketed() throws(ServingError) -> Expression {
        let line = current.line
        if skip(symbol: "(") {
            let inner = try tuple(inParentheses: true)
            try need(symbol: ")")
            return inner
        }
        if skip(symbol: "[") {
            var elements: [Expression] = []
            while !current.isSymbol("]") {
                elements.append(try expression())
                guard skip(symbol: ",") else { break }
            }
            try need(symbol: "]")
            return .list(elements)
        }
        guard skip(symbol: "{") else { throw failure("unexpected \(shown)") }
        var members: [(key: Expression, value: Expression)] = []
        while !current.isSymbol("}") {
            let key = try expression()
            try need(symbol: ":")
            members.append((key, try expression()))
            guard skip(symbol: ",") else { break }
        }
        try need(symbol: "}")
        return .dictionary(members, line: line)
    }

    // MARK: Postfixes

    /// Subscripts and calls; with filters also those and tests, after which only calls go on.
    private mutating func postfixes(withFilters: Bool) throws(ServingError) -> [Postfix] {
        var links: [Postfix] = []
        while true {
            let line = current.line
            if current.isSymbol(".") || current.isSymbol("[") {
                links.append(Postfix(kind: try subscripted(), line: line))
            } else if current.isSymbol("(") {
                links.append(Postfix(kind: .call(try arguments()), line: line))
            } else {
                break
            }
        }
        guard withFilters else { return links }
        while true {
            let line = current.line
            if current.isSymbol("|") {
                links += try filterChain(startsInline: false)
            } else if skip(name: "is") {
                links.append(Postfix(kind: try test(), line: line))
            } else if current.isSymbol("(") {
                links.append(Postfix(kind: .call(try arguments()), line: line))
            } else {
                return links
            }
        }
    }

    private mutating func subscripted() throws(ServingError) -> Postfix.Kind {
        if skip(symbol: ".") {
            if case .integer(let index) = current.kind {
                advance()
                return .item(.constant(.integer(index)))
            }
            return .attribute(try needName())
        }
        try need(symbol: "[")
        let kind = try subscript_()
        try need(symbol: "]")
        return kind
    }

    private mutating func subscript_() throws(ServingError) -> Postfix.Kind {
        var parts: [Expression?] = [nil]
        var colons = 0
        while !current.isSymbol("]") {
            if colons < 2, skip(symbol: ":") {
                colons += 1
                parts.append(nil)
            } else {
                guard parts[colons] == nil else { throw failure("expected ']', not \(shown)") }
                parts[colons] = try expression()
            }
        }
        if colons > 0 { return .slice(from: parts[0], to: parts[1], step: colons == 2 ? parts[2] : nil) }
        guard let index = parts[0] else { throw failure("an empty subscript") }
        return .item(index)
    }

    private mutating func filterChain(startsInline: Bool) throws(ServingError) -> [Postfix] {
        var links: [Postfix] = []
        var isInline = startsInline
        while isInline || skip(symbol: "|") {
            isInline = false
            let line = current.line
            let name = try needName()
            guard Filters.names.contains(name) else { throw templateError("there is no filter '\(name)'", line: line) }
            let list = current.isSymbol("(") ? try arguments() : ArgumentList()
            links.append(Postfix(kind: .filter(name, list), line: line))
        }
        return links
    }

    private mutating func test() throws(ServingError) -> Postfix.Kind {
        let negated = skip(name: "not")
        var name: String
        if current.kind == .name {
            name = try needName()
        } else {
            throw failure("expected a test's name, not \(shown)")
        }
        guard Tests.names.contains(name) else { throw failure("there is no test '\(name)'") }
        var list = ArgumentList()
        if current.isSymbol("(") {
            list = try arguments()
        } else if startsTestArgument {
            if current.isName("is") { throw failure("tests cannot be chained with 'is'") }
            let base = try primary()
            var links: [Postfix] = []
            while current.isSymbol(".") || current.isSymbol("[") || current.isSymbol("(") {
                let line = current.line
                links.append(
                    Postfix(kind: current.isSymbol("(") ? .call(try arguments()) : try subscripted(), line: line))
            }
            list.positional = [links.isEmpty ? base : .postfix(base, links)]
        }
        name = Tests.canonical(name)
        return .test(name, list, negated: negated)
    }

    private var startsTestArgument: Bool {
        switch current.kind {
        case .name: !["else", "or", "and"].contains(current.text)
        case .string, .integer, .float: true
        case .symbol: ["(", "[", "{"].contains(current.text)
        case .data, .outputBegin, .outputEnd, .blockBegin, .blockEnd, .end: false
        }
    }

    private mutating func arguments() throws(ServingError) -> ArgumentList {
        try need(symbol: "(")
        var list = ArgumentList()
        while !current.isSymbol(")") {
            if skip(symbol: "*") {
                guard list.spread == nil, list.spreadNamed == nil else { throw failure("a second '*' argument") }
                list.spread = try expression()
            } else if skip(symbol: "**") {
                guard list.spreadNamed == nil else { throw failure("a second '**' argument") }
                list.spreadNamed = try expression()
            } else if current.kind == .name, following.isSymbol("=") {
                guard list.spreadNamed == nil else { throw failure("an argument after '**'") }
                let name = try needName()
                advance()
                list.named.append((name, try expression()))
            } else {
                guard list.named.isEmpty, list.spread == nil, list.spreadNamed == nil else {
                    throw failure("a positional argument after a named one")
                }
                list.positional.append(try expression())
            }
            guard skip(symbol: ",") else { break }
        }
        try need(symbol: ")")
        return list
    }
}
