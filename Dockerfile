# The image holds the static binary and nothing else: `make image` compiles it and lays out the build context.
FROM scratch
LABEL org.opencontainers.image.title="turnout" \
      org.opencontainers.image.description="Self-contained cluster of MQTT gateways" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY turnout /turnout
COPY --chown=65532:65532 data /var/lib/turnout
COPY --chown=65532:65532 tmp /tmp
USER 65532:65532
VOLUME /var/lib/turnout
EXPOSE 1883 8080 7400 7401 7401/udp
ENTRYPOINT ["/turnout"]
CMD ["serve"]
