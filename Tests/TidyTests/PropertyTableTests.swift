import Foundation
import Testing

/// `ops/simulation/properties.md` names the tests that hold each property of scheduling.md §6; a table that names what
/// is no longer there is worse than none.
@Suite struct PropertyTableTests {
    @Test func everyTestThatTheTableNamesExists() throws {
        let table = try String(
            contentsOf: SourceTree.root.appendingPathComponent("ops/simulation/properties.md"), encoding: .utf8)
        let code = SourceTree.swiftFiles(in: "Tests").flatMap(\.codeLines).map(\.1)
        let rows = table.split(separator: "\n").filter { $0.hasPrefix("| ") && $0.contains("`") }
        #expect(rows.count == 25)
        for row in rows {
            let names = row.split(separator: "`").enumerated().filter { !$0.offset.isMultiple(of: 2) }.map(\.element)
            for name in names where name.first?.isLowercase == true {
                #expect(code.contains { $0.contains("func \(name)(") }, "no test is called \(name)")
            }
        }
    }
}
