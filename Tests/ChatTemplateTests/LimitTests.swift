import BoundedJSON
import ChatTemplate
import ServingTypes
import Testing

private func fault(_ source: String, _ variables: JSONObject = [:], _ limits: TemplateLimits = .init()) -> ServingError?
{
    do throws(ServingError) {
        _ = try ChatTemplate(source: source).render(variables, limits: limits)
        return nil
    } catch {
        return error
    }
}

@Suite struct LimitTests {
    private var tight: TemplateLimits {
        var limits = TemplateLimits()
        limits.stepsMax = 20_000
        limits.outputBytesMax = 10_000
        return limits
    }

    @Test(arguments: [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n) ~ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 'a' * 9223372036854775807 }}",
        "{{ [0] * 1000000000 }}",
        "{{ [] * 9223372036854775807 ~ '' * 9223372036854775807 }}{{ [1] * 30000 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x={}) %}{% for i in range(5000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
        "{% set ns = namespace(x='') %}{% for i in range(5000) %}{% set ns.x = ns.x ~ 'abcdefghij' %}{% endfor %}",
        "{% for i in range(5000) %}abcdefghij{% endfor %}",
        "{{ ('a' * 9000)|replace('a', 'b' * 9000) }}",
        "{{ ('a' * 9000)|replace('', 'b' * 9000) }}",
        "{{ (['a' * 9000] * 9000)|join('a' * 9000) }}",
        "{{ ('\\n' * 9000)|indent(9000) }}",
        "{{ 'a'|indent(9000000000) }}",
        "{{ [[1]]|tojson(indent=900000000) }}",
        "{{ '7'.zfill(9000000000) }}",
        "{{ [1]|batch(9000000000, 0)|list }}",
        "{{ [1]|slice(9000000000)|list }}",
        "{{ range(99999)|list|sort|unique|list }}",
        "{{ 9223372036854775807 + 1 }}",
        "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ (-9223372036854775807 - 1)|abs }}",
        "{{ 10 ** 100 }}",
        "{{ range(0, 9223372036854775807, 9223372036854775807) | list | length }}{{ 1 // 0 }}",
    ])
    func whatWouldGrowWithoutBoundEndsInAnError(_ source: String) {
        #expect(fault(source, [:], tight) != nil)
    }

    @Test func extremeIndexesAreNoTrap() {
        let top = "9223372036854775807"
        let bottom = "(-9223372036854775807 - 1)"
        for expression in [
            "'abc'[\(top)]", "'abc'[\(bottom)]", "[1][\(bottom)]", "'abc'[\(bottom):\(top)]", "'abc'[::\(top)]",
            "'abc'[::\(bottom)]", "[1, 2][\(top)::-1]", "[1, 2][:\(bottom):\(bottom)]", "'a' * \(bottom)",
            "\(bottom) % -1", "1.5|round(300)", "1e300|int", "'9' * 30|int", "2.5|round(-300)",
            "\(bottom) is divisibleby(-1)",
            "range(\(bottom), \(bottom) + 3)|list", "'a'.split('a', \(bottom))", "'aa'.replace('a', 'b', \(top))",
            "{1e300: 1}", "'%s'|indent(\(bottom))",
        ] {
            _ = fault("{{ \(expression) }}")
        }
        #expect(fault("{{ 'abc'[\(top)] }}") == nil)
    }

    @Test func nestingInTheSourceIsBounded() {
        let deep = 5000
        for (open, middle, close) in [
            ("(", "1", ")"), ("[", "", "]"), ("{1:", "1", "}"), ("not ", "1", ""), ("-", "1", ""), ("f(", "", ")"),
            ("x[", "1", "]"), ("1 if ", "1", " else 2"), ("1 if 1 else ", "1", ""), ("", "1", " if 1"),
        ] {
            let source = String(repeating: open, count: deep) + middle + String(repeating: close, count: deep)
            #expect(fault("{{ \(source) }}") != nil, "\(open)")
        }
        let blocks = String(repeating: "{% if 1 %}", count: deep) + String(repeating: "{% endif %}", count: deep)
        #expect(fault(blocks) != nil)
        #expect(
            fault(
                String(repeating: "(", count: 20) == ""
                    ? "" : "{{ \(String(repeating: "(", count: 20))1\(String(repeating: ")", count: 20)) }}") == nil)
    }

    @Test func longChainsAreNoNesting() throws {
        let sum = Array(repeating: "1", count: 5000).joined(separator: " + ")
        #expect(try ChatTemplate(source: "{{ \(sum) }}").render([:]) == "5000")
        let filters = Array(repeating: "trim", count: 5000).joined(separator: "|")
        #expect(try ChatTemplate(source: "{{ ' x '|\(filters) }}").render([:]) == "x")
        let branches = (0..<2000).map { "{% elif n == \($0) %}\($0)" }.joined()
        #expect(try ChatTemplate(source: "{% if false %}\(branches){% endif %}").render(["n": 1999]) == "1999")
    }

    @Test func theDefaultLimitsAreFarFromARealConversation() throws {
        let template = try ChatTemplate(
            source: "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + '\n' }}{% endfor %}")
        let message: JSONValue = ["role": "user", "content": .string(String(repeating: "word ", count: 200))]
        let text = try template.render(["messages": .array(Array(repeating: message, count: 500))])
        #expect(text.utf8.count > 500_000)
    }

    @Test func errorsNameTheLineAndTheField() throws {
        let error = try #require(fault("a\n{% if x %}\n{{ y.z }}{% endif %}", ["x": true]))
        #expect(error.message == "chat template, line 3: 'y' is undefined")
        #expect(error.field == "chat_template")
        let syntax = try #require(fault("a\n\n{{ 1 | nosuch }}"))
        #expect(syntax.message == "chat template, line 3: there is no filter 'nosuch'")
    }

    @Test func withoutADateTheTemplateSeesNoClock() throws {
        let template = try ChatTemplate(source: "{{ strftime_now('%Y') if strftime_now is defined else 'none' }}")
        #expect(try template.render([:]) == "none")
        #expect(try template.render([:], now: TemplateDate(year: 2026, month: 1, day: 2)) == "2026")
    }

    @Test func randomlyBrokenTemplatesNeverTrap() {
        let source = Array(
            "{% set ns = namespace(a=1) %}{%- for m in messages[::-1] if m.role != 'x' -%}{{ loop.index ~ m['content']|trim|upper }}{% else %}{# c #}{% endfor %}{% macro f(a, b=2) %}{{ a[1:-1] ~ {'k': [b, 1.5e3]}|tojson(indent=2) }}{% endmacro %}{{ f('abc') if ns.a is defined and not false else none }}"
                .unicodeScalars)
        let pieces = Array("{}%#-+'\"\\|()[]:,.=<>!~*/ \n0a_é".unicodeScalars)
        let variables: JSONObject = ["messages": [["role": "user", "content": " hi "]]]
        for seed in UInt64(0)..<1500 {
            var random = SplitMix(state: seed)
            var broken = source
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let place = Int.random(in: 0..<broken.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: broken.remove(at: place)
                case 1: broken[place] = pieces[Int.random(in: 0..<pieces.count, using: &random)]
                default: broken.insert(pieces[Int.random(in: 0..<pieces.count, using: &random)], at: place)
                }
            }
            var view = String.UnicodeScalarView()
            view.append(contentsOf: broken)
            if let error = fault(String(view), variables) { #expect(!error.message.isEmpty, "seed \(seed)") }
        }
    }
}

/// A generator with a seed that a failure message can name.
private struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
