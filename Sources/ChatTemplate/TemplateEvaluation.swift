import ServingTypes

extension Interpreter {
    func evaluate(_ expression: Expression) throws(ServingError) -> Value {
        try charge(1)
        try enter()
        defer { leave() }
        switch expression {
        case .constant(let value): return value
        case .name(let name, let line):
            self.line = line
            return lookUp(name) ?? .undefined("'\(name)' is undefined")
        case .list(let elements): return try list(try evaluate(elements))
        case .tuple(let elements): return try tuple(try evaluate(elements))
        case .dictionary(let members, let line): return try dictionary(members, line)
        case .postfix(let base, let links):
            var value = try evaluate(base)
            for link in links { value = try apply(link, to: value) }
            return value
        case .negative(let operand, let line): return try negated(try evaluate(operand), line)
        case .positive(let operand, let line):
            self.line = line
            let value = try evaluate(operand)
            guard value.number != nil else { throw failure("bad operand type for unary +: '\(value.typeName)'") }
            return value
        case .not(let operand): return .bool(!(try evaluate(operand).isTrue))
        case .arithmetic(let first, let rest, let line): return try arithmetic(first, rest, line)
        case .concatenation(let operands, let line): return try concatenation(operands, line)
        case .comparison(let first, let rest, let line): return try comparison(first, rest, line)
        case .and(let operands): return try firstDeciding(operands, truth: false)
        case .or(let operands): return try firstDeciding(operands, truth: true)
        case .conditional(let test, let then, let otherwise, let line):
            if try evaluate(test).isTrue { return try evaluate(then) }
            self.line = line
            guard let otherwise else { return .undefined("the inline if-expression on line \(line) has no else") }
            return try evaluate(otherwise)
        }
    }

    private func evaluate(_ expressions: [Expression]) throws(ServingError) -> [Value] {
        var values: [Value] = []
        values.reserveCapacity(expressions.count)
        for expression in expressions { values.append(try evaluate(expression)) }
        return values
    }

    func evaluate(_ list: ArgumentList) throws(ServingError) -> Arguments {
        var arguments = Arguments(try evaluate(list.positional))
        for (name, value) in list.named { arguments.named.append((name, try evaluate(value))) }
        if let spread = list.spread { arguments.positional += try iterated(try evaluate(spread)) }
        if let spread = list.spreadNamed {
            guard case .dictionary(let members) = try evaluate(spread) else { throw failure("'**' needs a dictionary") }
            for (key, value) in zip(members.keys, members.values) {
                guard case .string(let name) = key else { throw failure("keywords must be strings") }
                arguments.named.append((name, value))
            }
        }
        return arguments
    }

    /// The first operand with that truth value, else the last: Python's `and` and `or`.
    private func firstDeciding(_ operands: [Expression], truth: Bool) throws(ServingError) -> Value {
        var value = Value.none
        for operand in operands {
            value = try evaluate(operand)
            if value.isTrue == truth { return value }
        }
        return value
    }

    private func dictionary(
        _ members: [(key: Expression, value: Expression)], _ line: Int
    ) throws(ServingError) -> Value {
        var dictionary = Value.Dictionary()
        for (key, value) in members {
            let key = try evaluate(key)
            guard dictionary.set(key, try evaluate(value)) else {
                self.line = line
                throw failure("unhashable type: '\(key.typeName)'")
            }
        }
        try checkDepth(dictionary.depth)
        return .dictionary(dictionary)
    }

    // MARK: Operators

    private func negated(_ value: Value, _ line: Int) throws(ServingError) -> Value {
        self.line = line
        try needDefined(value)
        if case .float(let number) = value { return .float(-number) }
        guard let number = value.exactInteger else {
            throw failure("bad operand type for unary -: '\(value.typeName)'")
        }
        return try integer(Int64(0).subtractingReportingOverflow(number))
    }

    func needDefined(_ value: Value) throws(ServingError) {
        if case .undefined(let hint) = value { throw failure(hint) }
    }

    private func integer(_ result: (partialValue: Int64, overflow: Bool)) throws(ServingError) -> Value {
        guard !result.overflow else { throw failure("an integer beyond 64 bits") }
        return .integer(result.partialValue)
    }

    private func concatenation(_ operands: [Expression], _ line: Int) throws(ServingError) -> Value {
        var text = ""
        for operand in operands {
            let part = try shown(try evaluate(operand))
            self.line = line
            try charge(1 + part.utf8.count / 32)
            try checkText(bytes: text.utf8.count + part.utf8.count)
            text += part
        }
        return .string(text)
    }

    private func arithmetic(
        _ first: Expression, _ rest: [(sign: Arithmetic, operand: Expression)], _ line: Int
    ) throws(ServingError) -> Value {
        var value = try evaluate(first)
        for (sign, operand) in rest {
            let right = try evaluate(operand)
            self.line = line
            value = try compute(value, sign, right)
        }
        return value
    }

    private func compute(_ left: Value, _ sign: Arithmetic, _ right: Value) throws(ServingError) -> Value {
        try needDefined(left)
        try needDefined(right)
        if let a = left.exactInteger, let b = right.exactInteger { return try compute(a, sign, b) }
        if let a = left.number, let b = right.number { return try compute(a, sign, b) }
        switch (sign, left, right) {
        case (.add, .string(let a), .string(let b)):
            try chargeText(bytes: a.utf8.count + b.utf8.count)
            return .string(a + b)
        case (.add, .list(let a), .list(let b)): return try list(a.items + b.items)
        case (.add, .tuple(let a), .tuple(let b)): return try tuple(a.items + b.items)
        case (.multiply, _, _):
            if let count = right.exactInteger { return try repeated(left, count) }
            if let count = left.exactInteger { return try repeated(right, count) }
        default: break
        }
        throw failure(
            "unsupported operand types for \(sign.rawValue): '\(left.typeName)' and '\(right.typeName)'")
    }

    /// Python's `+` of two values.
    func sum(_ left: Value, _ right: Value) throws(ServingError) -> Value { try compute(left, .add, right) }

    private func repeated(_ value: Value, _ count: Int64) throws(ServingError) -> Value {
        let count = Int(clamping: max(0, count))
        switch value {
        case .string(let text):
            let (bytes, overflow) = text.utf8.count.multipliedReportingOverflow(by: count)
            try chargeText(bytes: overflow ? .max : bytes)
            return .string(String(repeating: text, count: bytes == 0 ? 0 : count))
        case .list(let elements), .tuple(let elements):
            let (total, overflow) = elements.count.multipliedReportingOverflow(by: count)
            try charge(overflow ? limits.stepsMax : total)
            let all = total == 0 ? [] : Array(repeatElement(elements.items, count: count).joined())
            if case .tuple = value { return try tuple(all) }
            return try list(all)
        default: throw failure("can't multiply '\(value.typeName)' by an integer")
        }
    }

    private func compute(_ a: Int64, _ sign: Arithmetic, _ b: Int64) throws(ServingError) -> Value {
        switch sign {
        case .add: return try integer(a.addingReportingOverflow(b))
        case .subtract: return try integer(a.subtractingReportingOverflow(b))
        case .multiply: return try integer(a.multipliedReportingOverflow(by: b))
        case .divide:
            guard b != 0 else { throw failure("division by zero") }
            return .float(Double(a) / Double(b))
        case .floorDivide:
            guard b != 0 else { throw failure("integer division or modulo by zero") }
            let (quotient, overflow) = a.dividedReportingOverflow(by: b)
            guard !overflow else { throw failure("an integer beyond 64 bits") }
            return .integer(a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient)
        case .modulo:
            guard b != 0 else { throw failure("integer division or modulo by zero") }
            let rest = a.remainderReportingOverflow(dividingBy: b).partialValue
            return .integer(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest)
        case .power:
            guard b >= 0 else { return try compute(Double(a), .power, Double(b)) }
            return try power(a, b)
        }
    }

    private func power(_ base: Int64, _ exponent: Int64) throws(ServingError) -> Value {
        var result: Int64 = 1
        if base == 0 || base == 1 { return .integer(exponent == 0 ? 1 : base) }
        if base == -1 { return .integer(exponent % 2 == 0 ? 1 : -1) }
        guard exponent < 64 else { throw failure("an integer beyond 64 bits") }
        for _ in 0..<exponent {
            let (product, overflow) = result.multipliedReportingOverflow(by: base)
            guard !overflow else { throw failure("an integer beyond 64 bits") }
            result = product
        }
        return .integer(result)
    }

    private func compute(_ a: Double, _ sign: Arithmetic, _ b: Double) throws(ServingError) -> Value {
        switch sign {
        case .add: return .float(a + b)
        case .subtract: return .float(a - b)
        case .multiply: return .float(a * b)
        case .divide, .floorDivide, .modulo:
            guard b != 0 else { throw failure("float division by zero") }
            if sign == .divide { return .float(a / b) }
            var rest = a.truncatingRemainder(dividingBy: b)
            if rest != 0, (rest < 0) != (b < 0) { rest += b }
            return .float(sign == .modulo ? rest : ((a - rest) / b).rounded())
        case .power:
            guard let exponent = Int(exactly: b), exponent.magnitude <= 1024 else {
                throw failure("only integral exponents up to 1024 are supported")
            }
            guard a != 0 || exponent >= 0 else { throw failure("zero cannot be raised to a negative power") }
            var result = 1.0
            for _ in 0..<exponent.magnitude { result *= a }
            return .float(exponent < 0 ? 1 / result : result)
        }
    }

    private func comparison(
        _ first: Expression, _ rest: [(sign: Comparison, operand: Expression)], _ line: Int
    ) throws(ServingError) -> Value {
        var left = try evaluate(first)
        for (sign, operand) in rest {
            let right = try evaluate(operand)
            self.line = line
            guard try compare(left, sign, right) else { return .bool(false) }
            left = right
        }
        return .bool(true)
    }

    func compare(_ left: Value, _ sign: Comparison, _ right: Value) throws(ServingError) -> Bool {
        switch sign {
        case .equal: return try same(left, right)
        case .notEqual: return !(try same(left, right))
        case .isIn: return try contains(right, left)
        case .isNotIn: return !(try contains(right, left))
        case .less, .lessOrEqual, .greater, .greaterOrEqual: break
        }
        switch try order(left, right, sign.rawValue) {
        case .less: return sign == .less || sign == .lessOrEqual
        case .equal: return sign == .lessOrEqual || sign == .greaterOrEqual
        case .greater: return sign == .greater || sign == .greaterOrEqual
        case .unordered: return false
        }
    }

    func contains(_ whole: Value, _ part: Value) throws(ServingError) -> Bool {
        switch whole {
        case .string(let text):
            guard case .string(let part) = part else {
                if case .undefined(let hint) = part { throw failure(hint) }
                throw failure("'in <string>' requires string as left operand, not \(part.typeName)")
            }
            try charge(1 + text.utf8.count / 32)
            return isPart(part, of: text)
        case .dictionary(let dictionary):
            guard DictionaryKey(part) != nil else {
                if case .undefined = part { return false }
                throw failure("unhashable type: '\(part.typeName)'")
            }
            return dictionary[part] != nil
        case .list(let elements), .tuple(let elements), .generator(let elements):
            for element in elements where try same(element, part) { return true }
            return false
        case .undefined: return false
        case .none, .bool, .integer, .float, .namespace, .macro, .loop, .function, .method:
            throw failure("argument of type '\(whole.typeName)' is not iterable")
        }
    }

    // MARK: Members

    func apply(_ link: Postfix, to value: Value) throws(ServingError) -> Value {
        try charge(1)
        switch link.kind {
        case .attribute(let name):
            line = link.line
            return try attribute(name, of: value)
        case .item(let index):
            let index = try evaluate(index)
            line = link.line
            return try item(index, of: value)
        case .slice(let from, let to, let step):
            return try slice(value, try bound(from), try bound(to), try bound(step), link.line)
        case .call(let list):
            let arguments = try evaluate(list)
            line = link.line
            return try call(value, arguments)
        case .filter(let name, let list):
            let arguments = try evaluate(list)
            line = link.line
            return try filter(name, value, arguments)
        case .test(let name, let list, let negated):
            let arguments = try evaluate(list)
            line = link.line
            return .bool(try test(name, value, arguments) != negated)
        }
    }

    private func bound(_ expression: Expression?) throws(ServingError) -> Int? {
        guard let expression else { return nil }
        let value = try evaluate(expression)
        if case .none = value { return nil }
        guard let index = value.exactInteger else {
            throw failure("slice indices must be integers, not '\(value.typeName)'")
        }
        return Int(clamping: index)
    }

    /// `value.name`: an attribute, or else the member of that name.
    func attribute(_ name: String, of value: Value) throws(ServingError) -> Value {
        try needDefined(value)
        if Methods.names(of: value).contains(name) { return .method(of: value, name: name) }
        switch value {
        case .dictionary(let dictionary):
            return dictionary[name] ?? .undefined("'dict object' has no attribute '\(name)'")
        case .namespace(let id):
            return namespaces[id][name] ?? .undefined("'Namespace object' has no attribute '\(name)'")
        case .loop(let id): return loopAttribute(name, loops[id], id)
        case .none: return .undefined("'None' has no attribute '\(name)'")
        case .undefined, .bool, .integer, .float, .string, .list, .tuple, .generator, .macro, .function, .method:
            return .undefined("'\(value.typeName) object' has no attribute '\(name)'")
        }
    }

    /// `value[index]`: a member, or else the attribute of that name.
    func item(_ index: Value, of value: Value) throws(ServingError) -> Value {
        try needDefined(value)
        let missing = Value.undefined("'\(value.typeName) object' has no element \(try represented(index))")
        switch value {
        case .dictionary(let dictionary):
            if let member = dictionary[index] { return member }
        case .list(let elements), .tuple(let elements):
            if let place = index.exactInteger {
                let at = place < 0 ? Int(clamping: place) + elements.count : Int(clamping: place)
                return elements.indices.contains(at) ? elements[at] : missing
            }
        case .string(let text):
            if let place = index.exactInteger {
                try charge(1 + text.utf8.count / 32)
                let view = text.unicodeScalars
                let at = place < 0 ? Int(clamping: place) + view.count : Int(clamping: place)
                guard at >= 0, at < view.count else { return missing }
                return .string(String(view[view.index(view.startIndex, offsetBy: at)]))
            }
        case .undefined, .none, .bool, .integer, .float, .generator, .namespace, .macro, .loop, .function, .method:
            break
        }
        if case .string(let name) = index { return try attribute(name, of: value) }
        return missing
    }

    private func slice(
        _ value: Value, _ from: Int?, _ to: Int?, _ step: Int?, _ line: Int
    ) throws(ServingError) -> Value {
        self.line = line
        try needDefined(value)
        let step = step ?? 1
        guard step != 0 else { throw failure("slice step cannot be zero") }
        switch value {
        case .string(let text):
            let all = scalars(text)
            try charge(1 + all.count / 8)
            return .string(string(places(all.count, from, to, step).map { all[$0] }))
        case .list(let elements): return try list(places(elements.count, from, to, step).map { elements[$0] })
        case .tuple(let elements):
            return try tuple(places(elements.count, from, to, step).map { elements[$0] })
        case .undefined, .none, .bool, .integer, .float, .generator, .dictionary, .namespace, .macro, .loop, .function,
            .method:
            return .undefined("'\(value.typeName) object' has no slices")
        }
    }

    /// The places that Python's `[from:to:step]` takes of `count`.
    private func places(_ count: Int, _ from: Int?, _ to: Int?, _ step: Int) -> [Int] {
        func clamped(_ index: Int, _ low: Int, _ high: Int) -> Int {
            min(max(index < 0 ? index.addingReportingOverflow(count).partialValue : index, low), high)
        }
        var places: [Int] = []
        if step > 0 {
            var at = clamped(from ?? 0, 0, count)
            let end = clamped(to ?? count, 0, count)
            while at < end {
                places.append(at)
                at = at.addingReportingOverflow(step).overflow ? end : at + step
            }
        } else {
            var at = from.map { clamped($0, -1, count - 1) } ?? count - 1
            let end = to.map { clamped($0, -1, count - 1) } ?? -1
            while at > end {
                places.append(at)
                at = at.addingReportingOverflow(step).overflow ? end : at + step
            }
        }
        return places
    }

    private func loopAttribute(_ name: String, _ loop: LoopState, _ id: Int) -> Value {
        let count = loop.elements.count
        func element(_ index: Int, _ hint: String) -> Value {
            loop.elements.indices.contains(index) ? loop.elements[index] : .undefined(hint)
        }
        switch name {
        case "index": return .integer(Int64(loop.index + 1))
        case "index0": return .integer(Int64(loop.index))
        case "revindex": return .integer(Int64(count - loop.index))
        case "revindex0": return .integer(Int64(count - loop.index - 1))
        case "first": return .bool(loop.index == 0)
        case "last": return .bool(loop.index == count - 1)
        case "length": return .integer(Int64(count))
        // Only recursive loops nest in Jinja's count, and those are not supported.
        case "depth": return .integer(1)
        case "depth0": return .integer(0)
        case "previtem": return element(loop.index - 1, "there is no previous item")
        case "nextitem": return element(loop.index + 1, "there is no next item")
        default: return .undefined("'LoopContext object' has no attribute '\(name)'")
        }
    }

    // MARK: Iteration and text

    /// The elements that a `for` runs over.
    func iterated(_ value: Value) throws(ServingError) -> [Value] {
        switch value {
        case .list(let elements), .tuple(let elements), .generator(let elements):
            try charge(1 + elements.count)
            return elements.items
        case .dictionary(let dictionary):
            try charge(1 + dictionary.count)
            return dictionary.keys
        case .string(let text):
            try charge(1 + text.utf8.count)
            return text.unicodeScalars.map { .string(String($0)) }
        case .undefined: return []
        case .none, .bool, .integer, .float, .namespace, .macro, .loop, .function, .method:
            throw failure("'\(value.typeName)' object is not iterable")
        }
    }

    /// Python's `str`.
    func shown(_ value: Value) throws(ServingError) -> String {
        switch value {
        case .string(let text): return text
        case .undefined: return ""
        case .none, .bool, .integer, .float, .list, .tuple, .generator, .dictionary, .namespace, .macro, .loop,
            .function, .method:
            return try represented(value)
        }
    }

    /// Python's `repr`.
    func represented(_ value: Value) throws(ServingError) -> String {
        var text = ""
        try represent(value, into: &text)
        return text
    }

    private func represent(_ value: Value, into text: inout String) throws(ServingError) {
        try enter()
        defer { leave() }
        try charge(1)
        switch value {
        case .undefined: text += "Undefined"
        case .none: text += "None"
        case .bool(let flag): text += flag ? "True" : "False"
        case .integer(let number): text += String(number)
        case .float(let number): text += number.pythonText
        case .string(let part):
            try charge(part.utf8.count / 32)
            text += pythonQuoted(part)
        case .list(let elements): try represent(elements, "[", "]", into: &text)
        case .tuple(let elements): try represent(elements, "(", elements.count == 1 ? ",)" : ")", into: &text)
        case .dictionary(let dictionary):
            text += "{"
            for (place, (key, value)) in zip(dictionary.keys, dictionary.values).enumerated() {
                if place > 0 { text += ", " }
                try represent(key, into: &text)
                text += ": "
                try represent(value, into: &text)
            }
            text += "}"
        case .generator, .namespace, .macro, .loop, .function, .method:
            throw failure("a '\(value.typeName)' has no text")
        }
        try checkText(bytes: text.utf8.count)
    }

    private func represent(
        _ elements: Value.Elements, _ open: String, _ close: String, into text: inout String
    ) throws(ServingError) {
        text += open
        for (place, element) in elements.enumerated() {
            if place > 0 { text += ", " }
            try represent(element, into: &text)
        }
        text += close
    }
}
