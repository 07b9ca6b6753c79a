import BoundedJSON
import ChatTemplate
import ServingTypes
import Tokenization

/// Renders and tokenises a request's prompts: a value, so that it can run on any thread.
struct PromptPreparation: Sendable {
    let model: ServedModel
    let source: PromptSource
    /// Whether the prompts' texts are wanted too.
    let echo: Bool
    /// For templates that show the date.
    let now: TemplateDate

    /// How much text there is to tokenise, in bytes.
    var textBytes: Int {
        switch source {
        case .texts(let texts, _): texts.reduce(0) { $0 + $1.utf8.count }
        case .tokens: 0
        case .chat(let prompt): prompt.messages.reduce(0) { $0 + ($1["content"]?.stringValue?.utf8.count ?? 0) + 16 }
        }
    }

    func run() throws(ServingError) -> [PreparedPrompt] {
        switch source {
        case .texts(let texts, let addSpecialTokens):
            texts.map {
                PreparedPrompt(tokens: model.tokenizer.encode($0, addSpecialTokens: addSpecialTokens), text: $0)
            }
        case .tokens(let lists):
            lists.map { PreparedPrompt(tokens: $0, text: echo ? model.tokenizer.decode($0, skipSpecial: false) : "") }
        case .chat(let prompt): [try chat(prompt)]
        }
    }

    private func chat(_ prompt: ChatPrompt) throws(ServingError) -> PreparedPrompt {
        guard let template = model.chatTemplate else {
            throw .unsupported("messages", "needs a chat template, which this model has not; use /v1/completions")
        }
        let text = try render(template, prompt)
        // The template writes the special tokens itself.
        return PreparedPrompt(tokens: model.tokenizer.encode(text, addSpecialTokens: false))
    }

    private func render(_ template: ChatTemplate, _ prompt: ChatPrompt) throws(ServingError) -> String {
        var variables = prompt.variables
        variables["messages"] = .array(prompt.messages)
        variables["tools"] = prompt.tools.isEmpty ? .null : .array(prompt.tools)
        variables["add_generation_prompt"] = .bool(prompt.addGenerationPrompt)
        variables["bos_token"] = .string(model.bosToken ?? "")
        variables["eos_token"] = .string(model.eosToken ?? "")
        do throws(ServingError) {
            return try template.render(variables, now: now)
        } catch {
            // A template refuses messages (their order, their roles) by raising: the request is at fault.
            throw ServingError(
                .invalidValue, "The chat template refused 'messages': \(error.message)", field: "messages")
        }
    }
}

extension TemplateDate {
    /// A civil date in UTC from seconds since 1970 (Hinnant's days algorithm).
    init(secondsSince1970 seconds: Int64) {
        let day = seconds >= 0 ? seconds / 86_400 : (seconds - 86_399) / 86_400
        let rest = Int(seconds - day * 86_400)
        let shifted = day + 719_468
        let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let monthFromMarch = (5 * dayOfYear + 2) / 153
        let month = Int(monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9)
        self.init(
            year: Int(yearOfEra + era * 400) + (month <= 2 ? 1 : 0), month: month,
            day: Int(dayOfYear - (153 * monthFromMarch + 2) / 5 + 1), hour: rest / 3600, minute: rest / 60 % 60,
            second: rest % 60)
    }
}
