import BoundedJSON
import ServingTypes

/// Variables of one block, and the block around it.
final class Scope {
    var variables: [String: Value] = [:]
    let parent: Scope?

    init(parent: Scope?) { self.parent = parent }
}

/// Where a loop stands.
struct LoopState {
    var elements: [Value]
    var index = 0
    /// What `loop.changed` saw last.
    var lastSeen: [Value]?
}

struct Macro {
    var declaration: MacroDeclaration
    var scope: Scope
}

/// One rendering. Everything that a template makes lives here and ends with it.
final class Interpreter {
    let limits: TemplateLimits
    let now: TemplateDate?
    private let globals: Scope
    private var stepsLeft: Int
    private var out = ""
    private var nesting = 0
    private var callDepth = 0
    var line = 1

    var scope: Scope
    var namespaces: [Value.Dictionary] = []
    var macros: [Macro] = []
    var loops: [LoopState] = []

    init(variables: JSONObject, now: TemplateDate?, limits: TemplateLimits) {
        self.limits = limits
        self.now = now
        stepsLeft = limits.stepsMax
        globals = Scope(parent: nil)
        for function in BuiltinFunction.allCases where function != .strftimeNow || now != nil {
            globals.variables[function.rawValue] = .function(function)
        }
        var count = 0
        for (name, value) in variables.members { globals.variables[name] = Value(value, count: &count) }
        stepsLeft -= count
        scope = Scope(parent: globals)
    }

    func render(_ body: [Statement]) throws(ServingError) -> String {
        _ = try run(body)
        return out
    }

    // MARK: Bounds

    func failure(_ message: String) -> ServingError { templateError(message, line: line) }

    /// Pays for work; a template that costs more than its limit ends here.
    func charge(_ steps: Int) throws(ServingError) {
        stepsLeft -= steps
        guard stepsLeft >= 0 else { throw failure("takes more than \(limits.stepsMax) steps") }
    }

    /// Checks a length before something of that length is made.
    func chargeText(bytes: Int) throws(ServingError) {
        guard bytes <= limits.outputBytesMax else {
            throw failure("makes a text of more than \(limits.outputBytesMax) bytes")
        }
        try charge(1 + bytes / 32)
    }

    func text(_ text: String) throws(ServingError) -> Value {
        try chargeText(bytes: text.utf8.count)
        return .string(text)
    }

    /// Checks a length on the way to a text that is paid for piece by piece.
    func checkText(bytes: Int) throws(ServingError) {
        guard bytes <= limits.outputBytesMax else {
            throw failure("makes a text of more than \(limits.outputBytesMax) bytes")
        }
    }

    func list(_ elements: [Value]) throws(ServingError) -> Value { .list(try self.elements(elements)) }

    func tuple(_ elements: [Value]) throws(ServingError) -> Value { .tuple(try self.elements(elements)) }

    func elements(_ elements: [Value]) throws(ServingError) -> Value.Elements {
        try charge(1 + elements.count)
        let made = Value.Elements(elements)
        try checkDepth(made.depth)
        return made
    }

    func checkDepth(_ depth: Int) throws(ServingError) {
        guard depth <= SyntaxLimits.valueDepthMax else {
            throw failure("makes values nested deeper than \(SyntaxLimits.valueDepthMax)")
        }
    }

    /// Python's `==`, paid for.
    func same(_ a: Value, _ b: Value) throws(ServingError) -> Bool {
        var budget = stepsLeft
        let equal = a.equals(b, budget: &budget)
        try charge(stepsLeft - budget)
        return equal
    }

    /// Python's order, paid for; throws where Python has none.
    func order(_ a: Value, _ b: Value, _ sign: String = "<") throws(ServingError) -> Value.Order {
        try needDefined(a)
        try needDefined(b)
        var budget = stepsLeft
        let order = a.order(b, budget: &budget)
        try charge(stepsLeft - budget)
        guard let order else {
            throw failure("'\(sign)' not supported between '\(a.typeName)' and '\(b.typeName)'")
        }
        return order
    }

    func enter() throws(ServingError) {
        nesting += 1
        guard nesting <= SyntaxLimits.evaluationNestingMax else {
            throw failure("evaluates more than \(SyntaxLimits.evaluationNestingMax) levels deep")
        }
    }

    func leave() { nesting -= 1 }

    private func write(_ text: String) throws(ServingError) {
        try chargeText(bytes: text.utf8.count)
        guard out.utf8.count + text.utf8.count <= limits.outputBytesMax else {
            throw failure("renders more than \(limits.outputBytesMax) bytes")
        }
        out += text
    }

    // MARK: Statements

    private enum Flow {
        case goesOn
        case breaks
        case continues
    }

    private func run(_ body: [Statement]) throws(ServingError) -> Flow {
        for statement in body {
            try charge(1)
            let flow = try run(statement)
            if flow != .goesOn { return flow }
        }
        return .goesOn
    }

    private func run(_ statement: Statement) throws(ServingError) -> Flow {
        try enter()
        defer { leave() }
        switch statement {
        case .text(let text): try write(text)
        case .output(let expression, let line):
            self.line = line
            try write(try shown(try evaluate(expression)))
        case .branch(let branches, let otherwise): return try runBranch(branches, otherwise)
        case .loop(let loop): return try runLoop(loop)
        case .set(let target, let expression, let line):
            self.line = line
            try assign(target, try evaluate(expression))
        case .setBlock(let target, let filters, let body, let line):
            let captured = try filtered(try capture(body), filters, line)
            try assign(target, captured)
        case .macro(let declaration):
            macros.append(Macro(declaration: declaration, scope: scope))
            scope.variables[declaration.name] = .macro(macros.count - 1)
        case .call(let declaration, let call, let line):
            self.line = line
            try runCall(declaration, call)
        case .filterBlock(let filters, let body, let line):
            try write(try shown(try filtered(try capture(body), filters, line)))
        case .with(let bindings, let body, let line):
            self.line = line
            return try runWith(bindings, body)
        case .scope(let body): return try inScope { () throws(ServingError) in try self.run(body) }
        case .breakLoop: return .breaks
        case .continueLoop: return .continues
        }
        return .goesOn
    }

    private func inScope<T>(_ body: () throws(ServingError) -> T) throws(ServingError) -> T {
        let outer = scope
        scope = Scope(parent: outer)
        defer { scope = outer }
        return try body()
    }

    private func runBranch(
        _ branches: [(test: Expression, body: [Statement])], _ otherwise: [Statement]
    ) throws(ServingError) -> Flow {
        for branch in branches where try evaluate(branch.test).isTrue { return try run(branch.body) }
        return try run(otherwise)
    }

    private func runWith(
        _ bindings: [(target: Target, value: Expression)], _ body: [Statement]
    ) throws(ServingError) -> Flow {
        var values: [Value] = []
        for binding in bindings { values.append(try evaluate(binding.value)) }
        return try inScope { () throws(ServingError) in
            for (binding, value) in zip(bindings, values) { try self.assign(binding.target, value) }
            return try self.run(body)
        }
    }

    private func runLoop(_ loop: ForStatement) throws(ServingError) -> Flow {
        line = loop.line
        var elements = try iterated(try evaluate(loop.iterable))
        if let filter = loop.filter { elements = try kept(elements, loop.target, filter) }
        guard !elements.isEmpty else {
            return try inScope { () throws(ServingError) in try self.run(loop.otherwise) }
        }
        loops.append(LoopState(elements: elements))
        let id = loops.count - 1
        for index in elements.indices {
            try charge(1)
            loops[id].index = index
            let flow = try inScope { () throws(ServingError) in
                try self.assign(loop.target, elements[index])
                self.scope.variables["loop"] = .loop(id)
                return try self.run(loop.body)
            }
            if flow == .breaks { break }
        }
        return .goesOn
    }

    /// The elements for which a loop's `if` holds.
    private func kept(
        _ elements: [Value], _ target: Target, _ filter: Expression
    ) throws(ServingError) -> [Value] {
        var kept: [Value] = []
        for element in elements {
            try charge(1)
            let holds = try inScope { () throws(ServingError) in
                try self.assign(target, element)
                return try self.evaluate(filter).isTrue
            }
            if holds { kept.append(element) }
        }
        return kept
    }

    private func assign(_ target: Target, _ value: Value) throws(ServingError) {
        switch target {
        case .name(let name): scope.variables[name] = value
        case .attribute(let owner, let name):
            guard case .namespace(let id)? = lookUp(owner) else {
                throw failure("cannot assign attribute on non-namespace object '\(owner)'")
            }
            guard !name.hasPrefix("_") else { throw failure("a namespace's attribute may not begin with '_'") }
            try checkDepth(value.depth)
            namespaces[id].set(name, value)
        case .tuple(let targets):
            let elements = try iterated(value)
            guard elements.count == targets.count else {
                throw failure("cannot unpack \(elements.count) values into \(targets.count)")
            }
            for (target, element) in zip(targets, elements) { try assign(target, element) }
        }
    }

    /// What a block writes, in a scope of its own.
    private func capture(_ body: [Statement]) throws(ServingError) -> Value {
        let outer = out
        out = ""
        defer { out = outer }
        _ = try inScope { () throws(ServingError) in try self.run(body) }
        return .string(out)
    }

    private func filtered(_ value: Value, _ filters: [Postfix], _ line: Int) throws(ServingError) -> Value {
        self.line = line
        var value = value
        for filter in filters { value = try apply(filter, to: value) }
        return value
    }

    private func runCall(_ declaration: MacroDeclaration, _ call: Expression) throws(ServingError) {
        guard case .postfix(let base, let links) = call, case .call(let list)? = links.last?.kind else {
            throw failure("expected a call")
        }
        macros.append(Macro(declaration: declaration, scope: scope))
        let caller = Value.macro(macros.count - 1)
        var callee = try evaluate(base)
        for link in links.dropLast() { callee = try apply(link, to: callee) }
        var arguments = try evaluate(list)
        arguments.named.append(("caller", caller))
        try write(try shown(try self.call(callee, arguments)))
    }

    // MARK: Names and macros

    func lookUp(_ name: String) -> Value? {
        var place: Scope? = scope
        while let here = place {
            if let value = here.variables[name] { return value }
            place = here.parent
        }
        return nil
    }

    func callMacro(_ id: Int, _ arguments: Arguments) throws(ServingError) -> Value {
        let macro = macros[id]
        let declaration = macro.declaration
        callDepth += 1
        defer { callDepth -= 1 }
        guard callDepth <= limits.depthMax else {
            throw failure("macros call each other more than \(limits.depthMax) deep")
        }
        let inner = Scope(parent: macro.scope)
        var rest = arguments
        for parameter in declaration.parameters {
            if !rest.positional.isEmpty {
                inner.variables[parameter.name] = rest.positional.removeFirst()
                guard !rest.named.contains(where: { $0.name == parameter.name }) else {
                    throw failure("macro '\(declaration.name)' got the argument '\(parameter.name)' twice")
                }
            } else if let place = rest.named.firstIndex(where: { $0.name == parameter.name }) {
                inner.variables[parameter.name] = rest.named.remove(at: place).value
            }
        }
        try bindRest(declaration, rest, inner)
        let outer = (scope, line)
        scope = inner
        defer { (scope, line) = outer }
        for parameter in declaration.parameters where inner.variables[parameter.name] == nil {
            inner.variables[parameter.name] =
                try parameter.initial.map { initial throws(ServingError) in try self.evaluate(initial) }
                ?? .undefined("parameter '\(parameter.name)' was not provided")
        }
        return try capture(declaration.body)
    }

    private func bindRest(_ declaration: MacroDeclaration, _ rest: Arguments, _ inner: Scope) throws(ServingError) {
        var rest = rest
        if let place = rest.named.firstIndex(where: { $0.name == "caller" }) {
            let caller = rest.named.remove(at: place).value
            guard declaration.takesCaller else {
                throw failure("macro '\(declaration.name)' was called with a block but does not use caller()")
            }
            inner.variables["caller"] = caller
        } else if declaration.takesCaller {
            inner.variables["caller"] = .undefined("No caller defined")
        }
        guard declaration.takesNamed || rest.named.isEmpty else {
            throw failure("macro '\(declaration.name)' takes no keyword argument '\(rest.named[0].name)'")
        }
        guard declaration.takesVariadic || rest.positional.isEmpty else {
            throw failure("macro '\(declaration.name)' takes not more than \(declaration.parameters.count) arguments")
        }
        if declaration.takesNamed {
            var named = Value.Dictionary()
            for (name, value) in rest.named { named.set(name, value) }
            inner.variables["kwargs"] = .dictionary(named)
        }
        if declaration.takesVariadic { inner.variables["varargs"] = try tuple(rest.positional) }
    }
}

/// A call's arguments, evaluated.
struct Arguments {
    var positional: [Value] = []
    var named: [(name: String, value: Value)] = []

    init() {}

    init(_ positional: [Value]) { self.positional = positional }
}
