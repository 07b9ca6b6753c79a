import BoundedJSON
import ChatTemplate
import CoordinatorCore
import NIOCore
import ServingTypes
import Tokenization

/// What each route does once its request is whole.
extension FrontDoor {
    func answer(_ exchange: Exchange, _ route: Route) {
        guard route.takesJSON, exchange.head.method == "POST" else { return answer(exchange, route, RequestBody()) }
        let body = RequestBody(bytes: exchange.body)
        let limits = configuration.limits
        guard body.bytes.count > limits.inlineBodyBytesMax else {
            return answer(exchange, route, Result { () throws(ServingError) in try body.parsed(limits) })
        }
        pool.runIfActive(eventLoop: loop) {
            Result { () throws(ServingError) in try body.parsed(limits) }
        }.assumeIsolated().whenComplete { outcome in
            switch outcome {
            case .success(let result): self.answer(exchange, route, result)
            case .failure: exchange.respond(ErrorBody(Self.stopping))
            }
        }
    }

    private func answer(_ exchange: Exchange, _ route: Route, _ body: Result<RequestBody, ServingError>) {
        // While a long body was parsed elsewhere its client may have left.
        guard !exchange.isDone else { return }
        switch body {
        case .success(let body): answer(exchange, route, body)
        case .failure(let error): exchange.respond(ErrorBody(error))
        }
    }

    private static let stopping = ServingError(.draining, "The server is stopping.", retryAfterSeconds: 1)

    private func answer(_ exchange: Exchange, _ route: Route, _ body: RequestBody) {
        do throws(ServingError) {
            switch route {
            case .completions: try generate(exchange, body, kind: .completion)
            case .chat: try generate(exchange, body, kind: .chat)
            case .models: exchange.respond(modelList)
            case .model(let name): exchange.respond(try model(named: name))
            case .tokenize: try tokenize(exchange, body.object)
            case .detokenize: try detokenize(exchange, body.object)
            case .jobs: exchange.respond(try jobList(exchange))
            case .job(let id): try job(exchange, id: id)
            case .jobEvents(let id): try jobEvents(exchange, id: id)
            case .cluster: exchange.respond(cluster)
            case .drain: try drainWorker(exchange, body.object)
            case .tenants: try tenants(exchange, body.object)
            case .health, .ready: health(exchange)
            case .live, .ping: exchange.respond(["status": "ok"])
            case .version: exchange.respond(["version": .string(configuration.version)])
            case .metrics: metrics(exchange)
            case .absent(let why): exchange.respond(.absent(exchange.head.path, why: why))
            }
        } catch {
            exchange.respond(ErrorBody(error))
        }
    }

    // MARK: Generation

    private func generate(
        _ exchange: Exchange, _ body: RequestBody, kind: JobRequestRecord.Kind
    ) throws(ServingError) {
        try checkOpen()
        let object = body.object
        exchange.adopt(requestID: object["request_id"]?.stringValue)
        let parser = GenerationRequestParser(model: configuration.model, limits: configuration.limits)
        var request =
            switch kind {
            case .completion: try parser.completion(object)
            case .chat: try parser.chat(object)
            }
        request.objectives = try Objectives(exchange.head.headers)
        let record = JobRequestRecord(
            kind: kind, model: request.model, created: service.wallClockSeconds,
            digest: Digest.request(kind: kind, body: body.bytes), stopStrings: request.stopStrings,
            detached: try detached(exchange.head), stopTokens: request.sampling.stopTokens,
            skipsSpecialTokens: request.skipsSpecialTokens)
        Generation(
            door: self, exchange: exchange, request: request, record: record,
            idempotencyKey: try idempotencyKey(exchange.head)
        ).start()
    }

    private func checkOpen() throws(ServingError) {
        guard !isDraining, service.readiness != .draining else {
            throw ServingError(.draining, "The server is draining and takes no new jobs.", retryAfterSeconds: 5)
        }
    }

    private func detached(_ head: RequestHead) throws(ServingError) -> Bool {
        switch head.headers["x-tandem-on-disconnect"] {
        case nil, "cancel": false
        case "continue": true
        case .some(let other):
            throw .invalid("x-tandem-on-disconnect", "is \(quotedForPeople(other)); it must be continue or cancel")
        }
    }

    private func idempotencyKey(_ head: RequestHead) throws(ServingError) -> String? {
        guard let key = head.headers["idempotency-key"] else { return nil }
        guard (1...255).contains(key.utf8.count), key.utf8.allSatisfy({ (0x20...0x7E).contains($0) }) else {
            throw .invalid(
                "idempotency-key", "has \(key.utf8.count) bytes; it must be 1 to 255 visible ASCII characters")
        }
        return key
    }

    // MARK: Models

    private var modelList: JSONValue {
        let names = [configuration.model.name] + configuration.model.aliases
        return ["object": "list", "data": .array(names.map { modelCard($0) })]
    }

    private func model(named name: String) throws(ServingError) -> JSONValue {
        guard configuration.model.answers(to: name) else { throw GenerationRequestParser.unknownModel(name) }
        return modelCard(name)
    }

    private func modelCard(_ name: String) -> JSONValue {
        [
            "id": .string(name), "object": "model", "created": .integer(configuration.model.created),
            "owned_by": "tandem", "root": .string(configuration.model.name), "parent": nil,
            "max_model_len": .integer(Int64(configuration.model.contextTokensMax)),
        ]
    }

    // MARK: Tokens

    private func tokenize(_ exchange: Exchange, _ object: JSONObject) throws(ServingError) {
        var fields = FieldReader(object)
        if let name = try fields.string("model"), !configuration.model.answers(to: name) {
            throw GenerationRequestParser.unknownModel(name)
        }
        let addSpecial = try fields.bool("add_special_tokens")
        let spelled = try fields.bool("return_token_strs") ?? false
        let source: PromptSource
        if fields.value("messages") != nil {
            let parser = GenerationRequestParser(model: configuration.model, limits: configuration.limits)
            source = .chat(try parser.chatPrompt(&fields))
        } else {
            // vLLM's name, llama-server's and SGLang's.
            let spellings = [try fields.string("prompt"), try fields.string("content"), try fields.string("text")]
            guard let text = spellings.compactMap({ $0 }).first else { throw .missing("prompt") }
            source = .texts([text], addSpecialTokens: addSpecial ?? true)
        }
        prepare(preparation(source, echo: false)) { result in
            do throws(ServingError) {
                exchange.respond(self.tokenList(try result.get().first?.tokens ?? [], spelled: spelled))
            } catch {
                exchange.respond(ErrorBody(error))
            }
        }
    }

    private func tokenList(_ tokens: [TokenID], spelled: Bool) -> JSONValue {
        var members = JSONObject([
            ("count", .integer(Int64(tokens.count))),
            ("max_model_len", .integer(Int64(configuration.model.contextTokensMax))),
            ("tokens", .array(tokens.map { .integer(Int64($0.value)) })),
        ])
        let tokenizer = configuration.model.tokenizer
        if spelled {
            members["token_strs"] = .array(
                tokens.map { .string(String(decoding: tokenizer.tokenBytes($0), as: UTF8.self)) })
        }
        return .object(members)
    }

    private func detokenize(_ exchange: Exchange, _ object: JSONObject) throws(ServingError) {
        var fields = FieldReader(object)
        guard let values = try fields.array("tokens", countMax: configuration.limits.bodyBytesMax) else {
            throw .missing("tokens")
        }
        let tokens = try FieldReader.tokens(
            values, name: "tokens", vocabularySize: configuration.model.vocabularySize)
        let skips = try fields.bool("skip_special_tokens") ?? false
        exchange.respond(["prompt": .string(configuration.model.tokenizer.decode(tokens, skipSpecial: skips))])
    }

    func preparation(_ source: PromptSource, echo: Bool) -> PromptPreparation {
        PromptPreparation(
            model: configuration.model, source: source, echo: echo,
            now: TemplateDate(secondsSince1970: service.wallClockSeconds))
    }

    /// Runs here or, where there is much text, on the pool.
    func prepare(
        _ preparation: PromptPreparation, then: @escaping (Result<[PreparedPrompt], ServingError>) -> Void
    ) {
        guard preparation.textBytes > configuration.limits.inlineTextBytesMax else {
            return then(Result { () throws(ServingError) in try preparation.run() })
        }
        pool.runIfActive(eventLoop: loop) {
            Result { () throws(ServingError) in try preparation.run() }
        }.assumeIsolated().whenComplete { outcome in
            switch outcome {
            case .success(let result): then(result)
            case .failure:
                then(.failure(Self.stopping))
            }
        }
    }

    // MARK: Jobs

    private func find(_ id: String, _ caller: Caller) throws(ServingError) -> (JobView, JobRequestRecord) {
        guard let job = JobID(id), let known = service.view(job), caller.sees(known.view.tenant) else {
            throw ServingError(.notFound, "There is no job \(quotedForPeople(id)).", field: "job")
        }
        return (known.view, known.request)
    }

    private func jobList(_ exchange: Exchange) throws(ServingError) -> JSONValue {
        let limit = try number(exchange.head, "limit", in: 1...configuration.limits.jobsListedMax) ?? 20
        let views = service.jobs(limit: configuration.limits.jobsListedMax).filter { exchange.caller.sees($0.tenant) }
        let data = views.prefix(limit).map { JobJSON.job($0, record: service.view($0.job)?.request) }
        return ["object": "list", "data": .array(Array(data))]
    }

    private func job(_ exchange: Exchange, id: String) throws(ServingError) {
        let (view, record) = try find(id, exchange.caller)
        guard exchange.head.method == "DELETE" else { return exchange.respond(JobJSON.job(view, record: record)) }
        let runs = view.ending == nil
        if runs { service.cancel(view.job) }
        exchange.respond(["id": .string(view.job.description), "object": "tandem.job", "cancelled": .bool(runs)])
    }

    private func jobEvents(_ exchange: Exchange, id: String) throws(ServingError) {
        let (view, record) = try find(id, exchange.caller)
        let offset = try number(exchange.head, "offset", in: 0...Int(Int32.max)) ?? 0
        let name = exchange.head.query("format") ?? JobFollower.Format.openai.rawValue
        guard let format = JobFollower.Format(rawValue: name) else {
            throw .invalid("format", "is \(quotedForPeople(name)); it must be openai or raw")
        }
        JobFollower(
            door: self, exchange: exchange, job: view.job, known: (view, record), format: format, offset: offset,
            includeUsage: exchange.head.query("include_usage") == "true"
        ).start()
    }

    private func number(_ head: RequestHead, _ name: String, in range: ClosedRange<Int>) throws(ServingError) -> Int? {
        guard let text = head.query(name) else { return nil }
        guard let number = Int(text), range.contains(number) else {
            throw .invalid(
                name,
                "is \(quotedForPeople(text)); it must be an integer from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    // MARK: Administration and health

    private var cluster: JSONValue {
        var members = JobJSON.cluster(service.snapshot()).objectValue ?? JSONObject()
        members["version"] = .string(configuration.version)
        members["model"] = .string(configuration.model.name)
        members["readiness"] = .string(readinessWord)
        members["connections"] = .integer(Int64(connections.count))
        return .object(members)
    }

    private var readinessWord: String {
        if isDraining { return "draining" }
        return switch service.readiness {
        case .ready: "ready"
        case .notReady: "not ready"
        case .draining: "draining"
        }
    }

    private func drainWorker(_ exchange: Exchange, _ object: JSONObject) throws(ServingError) {
        var fields = FieldReader(object)
        guard let name = try fields.string("worker") else { throw .missing("worker") }
        let seconds = try fields.number("deadline_seconds", in: 0...86_400) ?? 30
        guard service.drain(WorkerID(name), deadline: TimeSpan(seconds: Double(seconds))) else {
            throw ServingError(.notFound, "There is no worker \(quotedForPeople(name)).", field: "worker")
        }
        exchange.respond(["worker": .string(name), "draining": true], status: 202)
    }

    /// POST changes one tenant's settings; a member that is null goes back to the default.
    private func tenants(_ exchange: Exchange, _ object: JSONObject) throws(ServingError) {
        guard exchange.head.method == "POST" else {
            let seconds = try number(exchange.head, "window", in: 1...configuration.limits.tenantWindowSecondsMax)
            return exchange.respond(service.tenants(over: .seconds(Int64(seconds ?? 60))).json)
        }
        let change = try TenantChange(object) { service.settings(of: $0) }
        let waiting = NIOLoopBound((door: self, exchange: exchange), eventLoop: loop)
        try service.set(change.settings, of: change.tenant) { error in
            waiting.value.door.changed(change, error, waiting.value.exchange)
        }
    }

    private func changed(_ change: TenantChange, _ error: ServingError?, _ exchange: Exchange) {
        guard !exchange.isDone else { return }
        if let error { return exchange.respond(ErrorBody(error)) }
        let report = service.tenants(over: .seconds(60)).tenants.first { $0.tenant == change.tenant }
        exchange.respond(
            report?.json ?? ["name": .string(change.tenant.name), "settings": .string(change.settings.text)])
    }

    private func health(_ exchange: Exchange) {
        let readiness = isDraining ? .draining : service.readiness
        switch readiness {
        case .ready: exchange.respond(["status": "ok"])
        case .notReady(let why):
            let headers: HeaderList = ["retry-after": "1"]
            exchange.respond(["status": "unavailable", "reason": .string(why)], status: 503, headers: headers)
        case .draining:
            let headers: HeaderList = ["retry-after": "5"]
            exchange.respond(
                ["status": "draining", "reason": "The server is draining."], status: 503, headers: headers)
        }
    }

    private func metrics(_ exchange: Exchange) {
        let page = metricsPage() + counts.page(connections: connections.count)
        exchange.respond(
            bytes: Array(page.utf8), type: "text/plain; version=0.0.4; charset=utf-8")
    }
}
