import BoundedJSON
import ChatTemplate
import Foundation
import ServingTypes
import Testing

private func fixture(_ name: String) throws -> JSONValue {
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Fixtures")
    return try JSON.parse([UInt8](try Data(contentsOf: folder.appendingPathComponent(name))))
}

/// The moment that `strftime_now` shows in the fixtures.
private let now = TemplateDate(year: 2026, month: 11, day: 3, hour: 9, minute: 5, second: 7)

private enum Outcome {
    case rendered(String)
    case failed(ServingError, atParse: Bool)
}

private func outcome(_ source: String, _ variables: JSONObject) -> Outcome {
    var parsed = false
    do throws(ServingError) {
        let template = try ChatTemplate(source: source)
        parsed = true
        return .rendered(try template.render(variables, now: now))
    } catch {
        return .failed(error, atParse: !parsed)
    }
}

/// jinja2 in the environment that transformers gives chat templates is the judge: the same text byte
/// for byte, or an error where it has one, with its own message where the template raised it.
private func judge(_ entry: JSONValue, _ source: String, _ variables: JSONObject, _ name: String) {
    switch outcome(source, variables) {
    case .rendered(let text):
        let expected = entry["expected"]?.stringValue
        #expect(
            expected.map { Array($0.utf8) } == Array(text.utf8),
            "\(name): rendered \(JSON.quoted(text)), expected \(entry["expected"] ?? entry["error"] ?? .null)")
    case .failed(let error, let atParse):
        #expect(entry["error"] != nil, "\(name): \(error), expected \(entry["expected"] ?? .null)")
        if entry["raised"] != nil {
            #expect(error.message == entry["error"]?.stringValue, "\(name)")
            #expect(error.field == "messages", "\(name)")
        }
        if entry["syntax"] != nil { #expect(atParse, "\(name): \(error)") }
    }
}

@Suite struct FixtureTests {
    @Test func chatTemplatesRenderAsInTransformers() throws {
        let file = try fixture("chats.json")
        let renders = file["renders"]?.arrayValue ?? []
        #expect(renders.count >= 150)
        for entry in renders {
            let name = try #require(entry["template"]?.stringValue)
            let index = try #require(entry["conversation"]?.intValue)
            let source = try #require(file["templates"]?[name]?.stringValue)
            let variables = try #require(file["conversations"]?.arrayValue?[index].objectValue)
            judge(entry, source, variables, "\(name) \(index)")
        }
    }

    @Test func snippetsRenderAsInJinja() throws {
        let file = try fixture("snippets.json")
        let renders = file["renders"]?.arrayValue ?? []
        #expect(renders.count >= 500)
        let variables = try #require(file["variables"]?.objectValue)
        for entry in renders {
            let source = try #require(entry["template"]?.stringValue)
            judge(entry, source, variables, JSON.quoted(source))
        }
    }
}
